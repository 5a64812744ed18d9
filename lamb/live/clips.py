"""Events kept as files: one flac file for each, named after its time and its words."""

import re
from datetime import datetime
from pathlib import Path

import numpy as np

from ..audio.files import replacing


def save(folder: Path, when: datetime, caption: str, samples: np.ndarray, rate: int) -> Path:
    """Write samples (T,) at `rate` Hz; the file appears once it is complete. Raises OSError."""
    import soundfile

    words = re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:60]
    path = folder / f"{when.strftime('%Y-%m-%dT%H-%M-%S.%f')[:-3]}_{words}.flac"
    with replacing(path) as part:
        soundfile.write(part, np.clip(samples, -1, 1), rate, format="FLAC")
    return path
