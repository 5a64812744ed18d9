"""The captions of a system under evaluation: generated here, or read from a file.

Generated captions are kept in predictions.jsonl, so that a stopped run can resume. A line of it is what `lamb caption
--format jsonl` prints, with the `id` of the clip and `run`, a fingerprint of the model and the clips. Lines of another
run are never used; their file is moved aside.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.manifest import Clip, ManifestError, records
from ..inference.captioner import Captioner
from ..inference.captions import Caption
from ..model import checkpoint

FILE = "predictions.jsonl"
Progress = Callable[[int, int], None]
"""A function that is called with the number of clips that are done and the number of all clips."""


def caption_clips(
    model: str,
    clips: Sequence[Clip],
    out: Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> list[Caption]:
    """A caption for each clip, in order; a clip that cannot be read has a caption with `error` set.

    With `out`, each caption is appended to `out`/predictions.jsonl as soon as it is generated, and captions of the same
    model and clips that are already there are not generated again. The model is loaded only if it is needed.
    """
    file = None if out is None else out / FILE
    run = _fingerprint(model, clips) if file else ""
    done = _kept(file, run, say) if file else {}
    todo = [clip for clip in clips if clip.id not in done]
    if not todo:
        return [_caption(done[clip.id]) for clip in clips]
    if done:
        say(f"{len(done)} of {len(clips)} clips are captioned already in {file}")
    captioner = Captioner.load(model, device)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") if file else nullcontext() as stream:
        for clip, caption in zip(todo, captioner.stream(todo), strict=True):
            done[clip.id] = {"run": run, "id": clip.id, **caption.to_dict()}
            if stream:
                stream.write(json.dumps(done[clip.id]) + "\n")
                stream.flush()
            if progress:
                progress(len(done), len(clips))
    return [_caption(done[clip.id]) for clip in clips]


def _fingerprint(model: str, clips: Sequence[Clip]) -> str:
    """A hash of the files of the model and of the recordings.

    Recordings, and an encoder and an LLM that the model only refers to, count with their size and modification time.
    """
    folder = checkpoint.find(model)
    config = checkpoint.read_facts(folder)["config"]
    digest = hashlib.sha256()
    for path in sorted(path for pattern in checkpoint.FILES for path in folder.glob(pattern)):
        if path.suffix in (".json", ".safetensors"):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    for source in filter(None, (config.encoder.source, config.llm.source)):
        digest.update(f"{[_stamp(path) for path in sorted([Path(source), *Path(source).glob('*')])]}\n".encode())
    for clip in clips:
        about = (clip.id, clip.path, clip.start, clip.duration, _stamp(Path(clip.path)))
        digest.update(f"{about!r}\n".encode("utf-8", "replace"))
    return digest.hexdigest()[:12]


def _stamp(path: Path) -> tuple[int, int] | None:
    stat = path.stat() if path.is_file() else None
    return (stat.st_size, stat.st_mtime_ns) if stat else None


def _kept(file: Path, run: str, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """The lines of `file` that belong to `run`, by id of the clip. An incomplete last line is removed."""
    if not file.exists():
        return {}
    found: dict[str, dict[str, Any]] = {}
    text = file.read_bytes().decode("utf-8", "replace")
    whole = text[: text.rfind("\n") + 1]
    for number, line in enumerate(whole.split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            if row["run"] != run:
                aside = file.with_name(f"{file.stem}.{row['run']}{file.suffix}")
                file.replace(aside)
                say(f"{file} is of another model or other clips; it is {aside.name} now, and this run starts afresh")
                return {}
            found[row["id"]] = row
        except (ValueError, KeyError, TypeError):
            raise ManifestError(f"{file}, line {number}: not written by lamb evaluate; move the file away") from None
    if whole != text:
        with file.open("r+b") as stream:
            stream.truncate(len(whole.encode()))
    return found


def _caption(row: dict[str, Any]) -> Caption:
    return Caption(
        file=row["file"],
        duration=row.get("duration"),
        text=row.get("caption", ""),
        score=row.get("score"),
        confidence=row.get("confidence"),
        error=row.get("error"),
    )


def read_predictions(
    path: str | Path, clips: Sequence[Clip], partial: bool = False
) -> tuple[list[Clip], list[Caption]]:
    """The captions of any system from a CSV, TSV or JSONL file with `id` and `caption`: clips and captions in order.

    Instead of `id`, a row may have `file`, `path` or `file_name`, as the output of `lamb caption` has: the name of the
    recording, with or without its folder and suffix. A row with an `error` instead of a caption is a clip that failed.
    Raises ManifestError for an id that occurs twice, that belongs to no clip, or that is missing. With `partial`, clips
    and captions without a counterpart are left out.
    """
    path = Path(path)
    ids_of_files = _ids_of_files(clips)
    found: dict[str, Caption] = {}
    lines: dict[str, int] = {}
    for number, (id, caption) in records(path, lambda row: _row(row, ids_of_files)):
        if id in lines:
            problem = f"the id {id!r} is that of line {lines[id]}; give one caption per clip"
            raise ManifestError(f"{path}, line {number}: {problem}")
        found[id], lines[id] = caption, number
    known = {clip.id for clip in clips}
    for what, ids in (
        ("ids that no clip of the data has", [id for id in found if id not in known]),
        ("clips of the data without a caption", [clip.id for clip in clips if clip.id not in found]),
    ):
        if ids and not partial:
            named = ", ".join(map(repr, ids[:3])) + (", ..." if len(ids) > 3 else "")
            raise ManifestError(f"{path}: {len(ids)} {what}: {named}; give --partial to score what both have")
    both = [clip for clip in clips if clip.id in found]
    if not both:
        raise ManifestError(f"{path}: no id of the data is here; ids look like {clips[0].id!r}")
    return both, [replace(found[clip.id], file=clip.path or clip.id) for clip in both]


def _ids_of_files(clips: Sequence[Clip]) -> dict[str, str]:
    """The id of each clip by its path, its file name and its stem, as far as these belong to a single clip."""
    names: dict[str, set[str]] = {}
    for clip in clips:
        path = Path(clip.path or clip.id)
        for name in {str(path), path.name, path.stem}:
            names.setdefault(name, set()).add(clip.id)
    return {name: ids.pop() for name, ids in names.items() if len(ids) == 1}


def _row(row: Any, ids_of_files: Mapping[str, str]) -> tuple[str, Caption]:
    """The id of a clip and its caption, from a row of a file."""
    wanted = "a row has the keys id (or file) and caption"
    if not isinstance(row, dict):
        raise ValueError(f"no id; {wanted}")
    row = {str(key).strip().lower(): value for key, value in row.items()}
    id = row.get("id")
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if id in (None, ""):
        file = next((row[key] for key in ("file", "path", "file_name", "filename") if row.get(key)), None)
        if isinstance(file, str):
            names = (os.path.abspath(file), os.path.basename(file), Path(file).stem)
            id = next((ids_of_files[name] for name in names if name in ids_of_files), file)
    if not isinstance(id, str) or not id:
        raise ValueError(f"no id; {wanted}")
    if row.get("error"):
        return id, Caption(id, error=str(row["error"]))
    if not isinstance(row.get("caption"), str):
        raise ValueError(f"no caption; {wanted}")
    numbers = {key: row[key] for key in ("score", "confidence") if isinstance(row.get(key), int | float)}
    return id, Caption(id, text=row["caption"].strip(), **numbers)
