"""Scores by the Java programs behind the published tables: PTB tokenizer, METEOR and SPICE.

The jars are those of pycocoevalcap (https://github.com/salaniz/pycocoevalcap, extra `eval`). Here each program starts
once for all captions of an evaluation and works in UTF-8; if it fails, the error holds its own message.

As in aac-metrics 0.6 (https://github.com/Labbeti/aac-metrics), the source of most published tables, all scores are
computed from captions as the PTB tokenizer leaves them: in lower case, without punctuation, joined by blanks.

Letters: S clips.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import resources
from .metrics import Floats
from .resources import Unavailable

JAVA_VERSIONS = range(8, 22)  # METEOR and SPICE run on these
_PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", "--", "...", *".?!,:-;"])  # removed
_LIBRARIES = ("lang", "math", "util", "util.concurrent", "net", "text", "io")  # parts of java.base that SPICE accesses


class Java(NamedTuple):
    """The path of the program and its major version: 8, 11, 17 ..."""

    program: str
    version: int


def java() -> Java:
    """The Java of JAVA_HOME, or else the one on the PATH. Raises Unavailable."""
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


def _run(java: Java, arguments: Sequence[str], folder: Path, text: str = "") -> str:
    """The output of a Java program for the input `text`. Raises Unavailable with its own message if it fails."""
    command = [java.program, "-Dfile.encoding=UTF-8", "-Dsun.stdout.encoding=UTF-8", *arguments]
    done = subprocess.run(command, cwd=folder, input=text, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["it says nothing"]
        problem = next((line for line in words if "Exception" in line or "Error" in line), words[-1])
        raise Unavailable(f"{folder.name} by Java failed ({problem.strip()})", "java -version && free -h")
    return done.stdout


def ptb_tokenize(texts: Sequence[str]) -> list[list[str]]:
    """The tokens of each text by Stanford's PTBTokenizer, in lower case and without punctuation."""
    options = ["-cp", "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer"]
    options += ["-preserveLines", "-lowerCase"]
    answer = _run(java(), options, resources.jars() / "tokenizer", _lines(" ".join(text.split()) for text in texts))
    found = [[token for token in line.split() if token not in _PUNCTUATION] for line in answer.split("\n")[:-1]]
    if len(found) != len(texts):
        raise Unavailable(f"the PTB tokenizer gave {len(found)} lines for {len(texts)} captions", "java -version")
    return found


def _lines(texts: Iterable[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


class Meteor(NamedTuple):
    """METEOR 1.5 of one round: its score, the scores of the clips (S,), and the counts of each clip (S, 23)."""

    score: float
    per_clip: Floats
    counts: Floats


Round = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Candidates (S,) and the references of each clip, as the PTB tokenizer leaves them, joined by blanks."""


def meteor(rounds: Sequence[Round]) -> list[Meteor]:
    """METEOR of each round. Java aligns and counts; see `meteor_of` for the score.

    Denkowski and Lavie 2014, "Meteor universal: language specific translation evaluation for any target language".
    """
    lines = [
        " ||| ".join(["SCORE", *(text.replace("|||", "") for text in (*group, candidate))])
        for candidates, references in rounds
        for candidate, group in zip(candidates, references, strict=True)
    ]
    options = ["-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    answer = _run(java(), options, resources.jars() / "meteor", _lines(lines)).split("\n")[:-1]
    if len(answer) != len(lines):
        raise Unavailable(f"METEOR gave {len(answer)} lines for {len(lines)} clips", "java -version && free -h")
    numbers = _without_perfect_chunks(np.array([line.split() for line in answer], dtype=np.float64))  # (all S, 23)
    return [Meteor(float(meteor_of(c.sum(0))), meteor_of(c), c) for c in _split(numbers, rounds)]


def _split(values: Floats, rounds: Sequence[Round]) -> list[Floats]:
    """Values of the clips of all rounds, those of each round apart."""
    return np.split(values, np.cumsum([len(candidates) for candidates, _ in rounds])[:-1])


def _without_perfect_chunks(counts: Floats) -> Floats:
    """Set the chunks of candidates that equal a reference to 0: METEOR takes these as not fragmented at all."""
    matched = counts[:, 4:20].reshape(-1, 8, 2).sum(1)  # (S, 2): words of the candidate, of the reference
    perfect = (matched == counts[:, :2]).all(1) & (counts[:, 20] == 1)
    return np.concatenate([counts[:, :20], np.where(perfect, 0, counts[:, 20])[:, None], counts[:, 21:]], axis=1)


def meteor_of(counts: Floats) -> Floats:
    """METEOR (...,) from counts (..., 23) of a clip, or summed over clips.

    (1 - gamma (chunks / m)^beta) P R / (alpha P + (1 - alpha) R), where P and R are the shares of matched words in the
    candidate and the reference. Matches by exact form, stem, synonym and paraphrase have the weights `weight`, content
    words delta, and function words 1 - delta. The parameters are those of METEOR 1.5 for English.
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
    """SPICE of each clip, (S,) for each round. A clip without any meaning on both sides scores 0.

    Anderson et al. 2016, "SPICE: semantic propositional image caption evaluation".
    """
    program, version = java()
    folder = resources.jars() / "spice"
    models = resources.corenlp()
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
        _run(Java(program, version), [*options, "-out", str(told), "-subset", "-silent"], folder)
        if not told.is_file():
            raise Unavailable("SPICE ended without a result", "java -version && free -h")
        found = {item["image_id"]: item["scores"]["All"]["f"] for item in json.loads(told.read_text())}
    scores = np.array([float(found[number] or 0.0) for number in range(len(items))])
    return _split(np.nan_to_num(scores), rounds)
