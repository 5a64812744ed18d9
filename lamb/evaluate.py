"""`lamb evaluate`: how well a model captions labelled recordings."""

from pathlib import Path

from .captioner import Captioner
from .data import sources
from .data.manifest import read, select
from .labels import LABEL_WORDS, label_scores


def evaluate(model: str, data: str, split: str | None = None) -> dict[str, float]:
    """Caption a manifest (JSONL, CSV) or a folder of labelled recordings and score it.

    Raises ManifestError for data that cannot be used, ValueError for a clip whose label has no word list.
    """
    folder = Path(data)
    clips = select(sources.sounds(folder), split, folder) if folder.is_dir() else read(folder, split)
    unknown = {label for clip in clips for label in clip.labels} - LABEL_WORDS.keys()
    if unknown or not any(clip.labels for clip in clips):
        problem = f"labels without a word list: {', '.join(sorted(unknown))}" if unknown else "no labelled clips"
        raise ValueError(f"{data}: {problem}; the lists are LABEL_WORDS in lamb/labels.py")
    if any(clip.start or clip.duration for clip in clips):
        raise ValueError(f"{data}: clips that are a part of a recording cannot be evaluated yet; cut them into files")
    captioner = Captioner.load(model)
    results = list(captioner.stream([clip.path for clip in clips]))
    return label_scores(clips, results)
