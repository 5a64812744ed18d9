"""The programs and models that published scores need besides Python packages: where they are, and their download.

What is not on this machine raises `Unavailable` with the command that fetches it. Only `download` downloads anything.
"""

import hashlib
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from ..audio.files import cache, replacing
from ..data.download import DownloadError, fetch
from ..errors import LambError, reason

SBERT = "paraphrase-TinyBERT-L6-v2"  # FENSE's sentence model
DETECTOR = "echecker_clotho_audiocaps_base"  # FENSE's detector of fluency errors
DETECTOR_URL = f"https://github.com/blmoistawinde/fense/releases/download/V0.1/{DETECTOR}.ckpt"
DETECTOR_SHA256 = "1a719f090af70614bbdb9f9437530b7e133c48cfa4a58d964de0d47fc974a2fa"  # as aac-metrics has it
CORENLP = "stanford-corenlp-full-2015-12-09"
CORENLP_URL = f"https://nlp.stanford.edu/software/{CORENLP}.zip"
CORENLP_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
DOWNLOAD = "lamb evaluate --download"


class Unavailable(LambError):
    """A score that cannot be computed on this machine; the remedy is the command that changes this."""


def jars() -> Path:
    """The folder of pycocoevalcap, which holds the jars."""
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("pycocoevalcap is not installed", "pip install 'lamb-aac[eval]'")
    return Path(next(iter(spec.submodule_search_locations)))


def corenlp() -> list[Path]:
    """The two jars of CoreNLP 3.6, in the folder where pycocoevalcap or `download` puts them."""
    for folder in (jars() / "spice" / "lib", cache()):
        found = [folder / name for name in CORENLP_JARS]
        if all(path.is_file() for path in found):
            return found
    raise Unavailable("SPICE's CoreNLP 3.6 is not here (540 MB)", DOWNLOAD)


def detector_file() -> Path:
    """The path of the detector: in FENSE_DATA, or else in the folder that fense and aac-metrics use too."""
    import torch

    return Path(os.environ.get("FENSE_DATA") or Path(torch.hub.get_dir()) / "fense_data") / f"{DETECTOR}.ckpt"


def download(sbert: str = SBERT) -> list[Path]:
    """Download CoreNLP for SPICE, the sentence model and FENSE's detector if missing. Raises DownloadError."""
    from transformers import AutoConfig, AutoTokenizer

    here = []
    try:
        here += corenlp()
    except Unavailable:
        jars()  # CoreNLP is of no use without pycocoevalcap
        archive = fetch(CORENLP_URL, cache() / f"{CORENLP}.zip")
        here += [_unpacked(archive, f"{CORENLP}/{name}", cache() / name) for name in CORENLP_JARS]
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
        AutoConfig.from_pretrained(kind, trust_remote_code=False)
        AutoTokenizer.from_pretrained(kind, trust_remote_code=False)
    except Exception as error:  # the hub's client passes on whatever its HTTP library raises
        raise DownloadError(
            f"{sbert}: the Hugging Face hub does not give it ({reason(error)})", "check the network"
        ) from error
    return here


def _unpacked(archive: Path, name: str, target: Path) -> Path:
    """Unpack the file `name` of the archive to `target`, whole or not at all."""
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
