"""Captions as pre-annotations for Label Studio: a task for each recording, a region with a text for each segment. [O]

The format follows its documentation (https://labelstud.io/guide/predictions): every region consists of two results with
the same `id`, its label and its text. `LABELING` is the labelling interface that shows them; it is pasted into the
settings of the project. Label Studio serves files of its own machine as /data/local-files/?d=PATH, relative to the
folder in its environment variable LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT (here: /). Addresses stay as they are.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from .captions import Caption, Result, Segment, json_array, whole

LABELING = """<View>
  <Labels name="label" toName="audio"><Label value="Sound"/></Labels>
  <Audio name="audio" value="$audio"/>
  <TextArea name="caption" toName="audio" perRegion="true" editable="true" rows="2"/>
</View>"""


def write_label_studio(results: Iterable[Result]) -> Iterator[str]:
    """One array with a task for each recording; one that could not be captioned has no prediction."""
    # in ASCII: the bytes of a name need not be UTF-8
    return json_array(json.dumps(_task(whole(result)), allow_nan=False) for result in results)


def _task(caption: Caption) -> dict[str, Any]:
    if caption.error is not None:
        return {"data": {"audio": _address(caption.file), "error": caption.error}, "predictions": []}
    segments = caption.segments or (Segment(0.0, caption.duration or 0.0, caption.text, caption.confidence),)
    result = [part for k, segment in enumerate(segments) for part in _region(caption, k, segment)]
    from .. import __version__

    prediction: dict[str, Any] = {"model_version": f"lamb {__version__}", "result": result}
    if caption.confidence is not None:
        prediction["score"] = round(caption.confidence, 4)
    return {"data": {"audio": _address(caption.file), "caption": caption.text}, "predictions": [prediction]}


def _region(caption: Caption, number: int, segment: Segment) -> Iterator[dict[str, Any]]:
    """The label and the text of a region. Its id is the same in every run, so that imports can be compared."""
    id = hashlib.sha256(f"{number} {caption.file}".encode("utf-8", "surrogateescape")).hexdigest()[:10]
    span = {"start": round(segment.start, 3), "end": round(segment.end, 3), "channel": 0}
    shared: dict[str, Any] = {"id": id, "to_name": "audio", "origin": "prediction"}
    if caption.duration is not None:
        shared["original_length"] = round(caption.duration, 3)
    if segment.confidence is not None:
        shared["score"] = round(segment.confidence, 4)
    yield {**shared, "from_name": "label", "type": "labels", "value": {**span, "labels": ["Sound"]}}
    yield {**shared, "from_name": "caption", "type": "textarea", "value": {**span, "text": [segment.caption]}}


def _address(file: str) -> str:
    if "://" in file:
        return file
    path = os.path.abspath(file).lstrip("/")
    return f"/data/local-files/?d={quote(path, errors='surrogateescape')}"
