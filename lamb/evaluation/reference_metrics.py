"""Scores by the programs behind the published tables: PTB tokenizer, METEOR and SPICE (Java), SBERT, fluency errors.

The jars are those of pycocoevalcap (https://github.com/salaniz/pycocoevalcap, extra `eval`), driven here so that each
process starts once for all captions of an evaluation, in UTF-8, and ends with an error that says what it said. What is
not on this machine raises `Unavailable`, with the command that brings it; nothing is downloaded but by `download`.

As in aac-metrics 0.6 (https://github.com/Labbeti/aac-metrics), which most published tables come from, all scores get
captions as the PTB tokenizer leaves them: lower case, without punctuation, joined by blanks.

Letters: S clips.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import IO, Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np

from ..audio.files import replacing
from ..data.download import DownloadError, fetch
from ..errors import LambError, OptionError, reason
from .metrics import Floats

SBERT = "paraphrase-TinyBERT-L6-v2"  # FENSE's sentence model
DETECTOR = "echecker_clotho_audiocaps_base"  # FENSE's detector of fluency errors
DETECTOR_URL = f"https://github.com/blmoistawinde/fense/releases/download/V0.1/{DETECTOR}.ckpt"
DETECTOR_SHA256 = "1a719f090af70614bbdb9f9437530b7e133c48cfa4a58d964de0d47fc974a2fa"  # as aac-metrics has it
THRESHOLD = 0.9  # a caption whose error is likelier than this loses ...
PENALTY = 0.9  # ... this share of its score; both as in FENSE
CORENLP = "stanford-corenlp-full-2015-12-09"
CORENLP_URL = f"https://nlp.stanford.edu/software/{CORENLP}.zip"
CORENLP_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
JAVA_VERSIONS = range(8, 22)  # METEOR and SPICE run on these
DOWNLOAD = "lamb evaluate --download"
_PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", "--", "...", *".?!,:-;"])  # removed
_LIBRARIES = ("lang", "math", "util", "util.concurrent", "net", "text", "io")  # of java.base, which SPICE looks into


class Unavailable(LambError):
    """A score that cannot be had on this machine; the remedy is the command that changes it."""


def jars() -> Path:
    """The folder of pycocoevalcap, which holds the jars."""
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("pycocoevalcap is not installed", "pip install 'lamb-aac[eval]'")
    return Path(next(iter(spec.submodule_search_locations)))


class Java(NamedTuple):
    """The program, and its version: 8, 11, 17 ..."""

    program: str
    version: int


def java() -> Java:
    """The Java of JAVA_HOME, else that on the PATH."""
    home = os.environ.get("JAVA_HOME")
    program = shutil.which("java", path=str(Path(home, "bin"))) if home else None
    program = program or shutil.which("java")
    remedy = "apt install default-jre-headless"
    if program is None:
        raise Unavailable("there is no Java", remedy)
    said = subprocess.run([program, "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    if not found or int(found[1]) not in JAVA_VERSIONS:
        name = f"Java {found[1]}" if found else f"{program} (it does not say its version)"
        raise Unavailable(f"{name} does not run METEOR and SPICE, which want Java 8 to 21", remedy)
    return Java(program, int(found[1]))


@contextmanager
def _process(java: Java, arguments: Sequence[str], folder: Path) -> Iterator[tuple[IO[str], IO[str]]]:
    """A Java program's standard input and output; Unavailable with what it said where it fails."""
    command = [java.program, "-Dfile.encoding=UTF-8", "-Dsun.stdout.encoding=UTF-8", *arguments]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
        )
        assert process.stdin
        assert process.stdout
        try:
            yield process.stdin, process.stdout
            process.stdin.close()
            failed = process.wait() != 0
        except (BrokenPipeError, _Ended):
            failed = True
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if failed:
            errors.seek(0)
            words = errors.read().decode("utf-8", "replace").strip().splitlines() or ["it says nothing"]
            problem = next((line for line in words if "Exception" in line or "Error" in line), words[-1])
            raise Unavailable(f"{folder.name} by Java failed ({problem.strip()})", "java -version && free -h")


class _Ended(Exception):
    """A process that stopped answering."""


def ptb_tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Each text's tokens, without punctuation, lower case, by Stanford's PTBTokenizer in one process."""
    options = ["-cp", "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer"]
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    with _process(java(), [*options, "-preserveLines", "-lowerCase"], jars() / "tokenizer") as (question, answer):

        def ask() -> None:
            question.write(lines)
            question.close()

        with _aside(ask):
            found = [[token for token in line.split() if token not in _PUNCTUATION] for line in answer]
    if len(found) != len(texts):
        raise Unavailable(f"the PTB tokenizer gave {len(found)} lines for {len(texts)} captions", "java -version")
    return found


@contextmanager
def _aside(work: Any) -> Iterator[None]:
    """`work` in another thread meanwhile, so that neither side of a pipe waits for the other."""

    def quietly() -> None:
        with suppress(BrokenPipeError, ValueError):  # the process is gone; its reader tells
            work()

    thread = Thread(target=quietly, daemon=True)
    thread.start()
    yield
    thread.join()


class Meteor(NamedTuple):
    """METEOR 1.5 of one round: its score, of each clip (S,), and what is counted in each clip (S, 23)."""

    score: float
    per_clip: Floats
    counts: Floats


Round = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Candidates (S,) and the references of each, as the PTB tokenizer leaves them, joined by blanks."""


def meteor(rounds: Sequence[Round]) -> list[Meteor]:
    """METEOR of each round, in one process. Denkowski and Lavie 2014, "Meteor universal"."""

    def plain(text: str) -> str:
        return text.replace("|||", "")

    lines = [
        " ||| ".join(["SCORE", *map(plain, group), plain(candidate)])
        for candidates, references in rounds
        for candidate, group in zip(candidates, references, strict=True)
    ]
    options = ["-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    scores = []
    with _process(java(), options, jars() / "meteor") as (question, answer):

        def read() -> str:
            if not (line := answer.readline()):
                raise _Ended
            return line.strip()

        def ask() -> None:
            question.write("".join(line + "\n" for line in lines))
            question.flush()

        with _aside(ask):
            said = iter([read() for _ in lines])
        for candidates, _ in rounds:
            counts = [next(said) for _ in candidates]
            question.write(" ||| ".join(["EVAL", *counts]) + "\n")
            question.flush()
            *per_clip, score = (float(read()) for _ in range(len(counts) + 1))
            numbers = np.array([line.split() for line in counts], dtype=np.float64)
            scores.append(Meteor(score, np.array(per_clip), _without_perfect_chunks(numbers)))
    return scores


def _without_perfect_chunks(counts: Floats) -> Floats:
    """A clip that equals its reference is not fragmented at all: METEOR leaves its one chunk out of its sum."""
    matched = counts[:, 4:20].reshape(-1, 8, 2).sum(1)  # (S, 2): words of the candidate, of the reference
    perfect = (matched == counts[:, :2]).all(1) & (counts[:, 20] == 1)
    return np.concatenate([counts[:, :20], np.where(perfect, 0, counts[:, 20])[:, None], counts[:, 21:]], axis=1)


def meteor_of(counts: Floats) -> Floats:
    """METEOR from its counts (..., 23), of a clip or summed over clips: (...,).

    (1 - gamma (chunks / m)^beta) P R / (alpha P + (1 - alpha) R); P and R are matched words over words, matches by
    exact form, stem, synonym and paraphrase weighing `weight`, content words delta, function words 1 - delta. The
    English parameters of METEOR 1.5.
    """
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    weight = np.array([1.0, 0.6, 0.8, 0.6])
    stages = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 2, 2)  # stage; content, function; candidate, reference
    matches = np.einsum("s,...swt,w->...t", weight, stages, [delta, 1 - delta])  # (..., 2)
    words, function_words = counts[..., 0:2], counts[..., 2:4]
    length = delta * (words - function_words) + (1 - delta) * function_words
    precision, recall = np.moveaxis(_divided(matches, length), -1, 0)
    f_mean = _divided(precision * recall, alpha * precision + (1 - alpha) * recall)
    fragments = _divided(counts[..., 20], (counts[..., 21] + counts[..., 22]) / 2)
    return f_mean * (1 - gamma * fragments**beta)


def _divided(a: Floats, b: Floats) -> Floats:
    return np.divide(a, b, out=np.zeros(np.shape(a)), where=np.asarray(b) > 0)


def spice(rounds: Sequence[Round]) -> list[Floats]:
    """SPICE of each clip, (S,) a round, in one process. Anderson et al. 2016, "SPICE: semantic propositional image
    caption evaluation". A clip in which neither side says anything scores 0."""
    program, version = java()
    folder = jars() / "spice"
    models = _corenlp()
    packages = [f"java.base/java.{name}" for name in _LIBRARIES] + ["java.sql/java.sql"]
    opens = [f"--add-opens={name}=ALL-UNNAMED" for name in packages] if version > 8 else []
    path = os.pathsep.join(["spice-1.0.jar", "lib/*", *map(str, models)])
    items = [
        {"test": candidate, "refs": list(group)}
        for candidates, references in rounds
        for candidate, group in zip(candidates, references, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="lamb-spice-") as scratch:
        asked, told, cache = (Path(scratch, name) for name in ("in.json", "out.json", "cache"))
        asked.write_text(json.dumps([{"image_id": number, **item} for number, item in enumerate(items)]))
        cache.mkdir()
        options = [*opens, "-Xmx8G", "-cp", path, "edu.anu.spice.SpiceScorer", str(asked), "-cache", str(cache)]
        with _process(Java(program, version), [*options, "-out", str(told), "-subset", "-silent"], folder) as (
            _,
            answer,
        ):
            answer.read()
        if not told.is_file():
            raise Unavailable("SPICE ended without a result", "java -version && free -h")
        found = {item["image_id"]: item["scores"]["All"]["f"] for item in json.loads(told.read_text())}
    scores = np.array([float(found[number] or 0.0) for number in range(len(items))])
    ends = np.cumsum([len(candidates) for candidates, _ in rounds])[:-1]
    return np.split(np.nan_to_num(scores), ends)


def _corenlp() -> list[Path]:
    """The two jars of CoreNLP 3.6, from where pycocoevalcap or `download` puts them."""
    for folder in (jars() / "spice" / "lib", _cache()):
        found = [folder / name for name in CORENLP_JARS]
        if all(path.is_file() for path in found):
            return found
    raise Unavailable("SPICE's CoreNLP 3.6 is not here (540 MB)", DOWNLOAD)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lamb"


class Sentences:
    """Sentence-BERT: how alike two captions are in meaning. Reimers and Gurevych 2019."""

    def __init__(self, name: str = SBERT) -> None:
        """`name`: a model of sentence-transformers that is on this machine, or a folder."""
        if find_spec("sentence_transformers") is None:
            raise Unavailable("sentence-transformers is not installed", "pip install 'lamb-aac[eval]'")
        from sentence_transformers import SentenceTransformer

        if os.sep in name and not os.path.isdir(name) and name.count("/") != 1:
            raise OptionError(f"{name}: no such folder", "--sbert takes a model of sentence-transformers or a folder")
        with _quiet():
            try:
                self.model = SentenceTransformer(name, local_files_only=True)
            except (OSError, ValueError) as error:
                remedy = DOWNLOAD if name == SBERT else f"{DOWNLOAD} --sbert {name}"
                raise Unavailable(f"the sentence model {name} is not on this machine", remedy) from error

    def similarity(self, rounds: Sequence[Round]) -> list[Floats]:
        """Of each clip, (S,) a round: mean cosine of the candidate and its references; 0 for no words."""
        texts = sorted({text for candidates, groups in rounds for text in (*candidates, *_flat(groups))})
        vectors = self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False, batch_size=64)
        of = dict(zip(texts, np.asarray(vectors, dtype=np.float64), strict=True))
        return [
            np.array(
                [
                    float(np.mean([of[text] @ of[candidate] for text in group])) if candidate else 0.0
                    for candidate, group in zip(candidates, groups, strict=True)
                ]
            )
            for candidates, groups in rounds
        ]


def _flat(groups: Iterable[Sequence[str]]) -> Iterator[str]:
    return (text for group in groups for text in group)


class FluencyDetector:
    """FENSE's detector: a BERT with a linear layer on its first token tells what is wrong with a sentence; the last
    class is "something". Zhou et al. 2022, "Can audio captions be evaluated with image caption metrics?"

    A checkpoint holds `model_type` (the BERT's name, for its configuration and tokenizer), `num_classes`, `state_dict`.
    """

    def __init__(self, file: Path | None = None) -> None:
        import torch

        file = file or detector_file()
        if not file.is_file():
            raise Unavailable("FENSE's error detector is not here (440 MB)", DOWNLOAD)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            kind, classes = str(state["model_type"]), int(state["num_classes"])
            weights = {k: v for k, v in state["state_dict"].items() if k != "encoder.embeddings.position_ids"}
        except Exception as error:  # whatever a file that is no such checkpoint makes of torch.load
            raise Unavailable(f"{file} cannot be read as a detector", f"rm '{file}' && {DOWNLOAD}") from error
        self.model = self._build(kind, classes)
        self.model.load_state_dict(weights)
        self.model.eval()

    def _build(self, kind: str, classes: int, local: bool = True) -> Any:
        """The network, its weights still random; with the configuration and tokenizer of `kind`."""
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        try:
            config = AutoConfig.from_pretrained(kind, local_files_only=local)
            self.tokenizer = AutoTokenizer.from_pretrained(kind, local_files_only=local)
        except OSError as error:
            raise Unavailable(f"the tokenizer of {kind}, for FENSE's error detector, is not here", DOWNLOAD) from error
        encoder = AutoModel.from_config(config)
        return torch.nn.ModuleDict({"encoder": encoder, "clf": torch.nn.Linear(config.hidden_size, classes)})

    def probability(self, texts: Sequence[str], batch: int = 64) -> Floats:
        """How likely each text has an error, (len(texts),)."""
        import torch

        found: list[float] = []
        plain = [re.sub(r"[^\w\s]", "", text).lower() for text in texts]
        for k in range(0, len(plain), batch):
            tokens = self.tokenizer(
                plain[k : k + batch], truncation=True, padding=True, max_length=64, return_tensors="pt"
            )
            with torch.inference_mode():
                first = self.model["encoder"](**tokens).last_hidden_state[:, 0]  # (B, D)
                found += self.model["clf"](first)[:, -1].sigmoid().tolist()
        return np.array(found)


def detector_file() -> Path:
    """Where the detector lies: FENSE_DATA, else the folder that fense and aac-metrics use too."""
    import torch

    return Path(os.environ.get("FENSE_DATA") or Path(torch.hub.get_dir()) / "fense_data") / f"{DETECTOR}.ckpt"


def download(sbert: str = SBERT) -> list[Path]:
    """Fetch what is missing of SPICE's CoreNLP, the sentence model and FENSE's detector; DownloadError if it fails."""
    from transformers import AutoConfig, AutoTokenizer

    here = []
    try:
        here += _corenlp()
    except Unavailable:
        jars()  # of no use without
        archive = fetch(CORENLP_URL, _cache() / f"{CORENLP}.zip")
        here += [_unpacked(archive, f"{CORENLP}/{name}", _cache() / name) for name in CORENLP_JARS]
        archive.unlink()
    file = detector_file()
    if not file.is_file():
        part = fetch(DETECTOR_URL, file.with_name(file.name + ".unchecked"))
        with part.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != DETECTOR_SHA256:
                part.unlink()
                raise DownloadError(f"{DETECTOR_URL}: what came is not the file that was published; run again")
        part.replace(file)
    here.append(file)
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        SentenceTransformer(sbert)
        kind = torch.load(file, map_location="cpu", weights_only=True)["model_type"]
        AutoConfig.from_pretrained(kind)
        AutoTokenizer.from_pretrained(kind)
    except Exception as error:  # the hub's client passes on whatever its HTTP library raises
        raise DownloadError(
            f"{sbert}: the Hugging Face hub does not give it ({reason(error)})", "check the network"
        ) from error
    return here


def _unpacked(archive: Path, name: str, target: Path) -> Path:
    """The file `name` of the archive as `target`, whole or not at all."""
    try:
        with (
            ZipFile(archive) as zipped,
            zipped.open(name) as source,
            replacing(target) as part,
            part.open("wb") as file,
        ):
            shutil.copyfileobj(source, file)
    except (BadZipFile, KeyError) as error:
        raise DownloadError(
            f"{archive}: not the archive that was published ({error}); delete it and run again"
        ) from None
    return target


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of the libraries."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
