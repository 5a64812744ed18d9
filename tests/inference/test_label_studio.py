"""Pre-annotations for Label Studio, against what its documentation says of them."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from lamb.inference.captions import Caption, Segment, Timeline
from lamb.inference.label_studio import LABELING, write_label_studio

SEGMENTS = (Segment(0.0, 2.5, "A dog barks.", 0.8), Segment(2.5, 4.0, "Rain falls."))


def tasks(*results):
    return json.loads("".join(write_label_studio(results)))


def check(task):
    """https://labelstud.io/guide/predictions and /guide/task_format: what a task with predictions must hold."""
    controls = {c.get("name"): c for c in ElementTree.fromstring(LABELING).iter() if c.get("toName")}
    [sound] = [c for c in ElementTree.fromstring(LABELING).iter() if c.tag == "Audio"]
    assert isinstance(task["data"][sound.get("value").removeprefix("$")], str)
    for prediction in task["predictions"]:
        assert isinstance(prediction["model_version"], str)
        assert 0 <= prediction.get("score", 0) <= 1
        for part in prediction["result"]:
            control = controls[part["from_name"]]
            assert part["to_name"] == control.get("toName") == sound.get("name")
            assert part["type"] == control.tag.lower()
            assert 0 <= part["value"]["start"] < part["value"]["end"] <= part["original_length"]
            values = part["value"][{"labels": "labels", "textarea": "text"}[part["type"]]]
            assert values
            assert all(isinstance(value, str) for value in values)
            if part["type"] == "labels":
                assert set(values) <= {label.get("value") for label in control}


def test_a_region_a_segment_with_its_label_and_its_caption():
    [task] = tasks(Caption("day.wav", 4.0, "A dog barks, then rain falls.", confidence=0.7, segments=SEGMENTS))
    check(task)
    [prediction] = task["predictions"]
    regions = {}
    for part in prediction["result"]:
        regions.setdefault(part["id"], []).append((part["type"], part["value"]["start"], part["value"]["end"]))
    assert list(regions.values()) == [
        [("labels", 0.0, 2.5), ("textarea", 0.0, 2.5)],
        [("labels", 2.5, 4.0), ("textarea", 2.5, 4.0)],
    ]
    assert [p["value"]["text"] for p in prediction["result"] if "text" in p["value"]] == [
        ["A dog barks."],
        ["Rain falls."],
    ]


def test_a_caption_without_segments_is_one_region():
    [task] = tasks(Caption("dog.wav", 3.0, "A dog barks.", confidence=0.5))
    check(task)
    assert len(task["predictions"][0]["result"]) == 2


def test_a_timeline_is_heard_to_its_end():
    def heard():
        yield from SEGMENTS
        return Caption("day.wav", 4.0, "A dog barks, then rain falls.", segments=SEGMENTS)

    [task] = tasks(Timeline("day.wav", heard()))
    check(task)


def test_paths_addresses_and_failures(tmp_path):
    name = tmp_path / "a b&c?d=ü.wav"
    first, second, third = tasks(
        Caption(str(name), 3.0, "Rain."), Caption("s3://sounds/dog.wav", 3.0, "A dog."), Caption("x.wav", error="empty")
    )
    address = urlsplit(first["data"]["audio"])
    assert address.path == "/data/local-files/"
    assert Path("/" + parse_qs(address.query)["d"][0]) == name
    assert second["data"]["audio"] == "s3://sounds/dog.wav"
    assert third["predictions"] == []
    assert third["data"]["error"] == "empty"
    assert tasks() == []


def test_the_same_recording_has_the_same_ids_at_every_run():
    caption = Caption("day.wav", 4.0, "A dog barks.", segments=SEGMENTS)
    assert tasks(caption) == tasks(caption)


def test_a_name_that_is_no_utf8_is_written():
    [task] = tasks(Caption("caf\udce9.wav", 1.0, "Rain."))
    assert task["data"]["audio"].endswith("caf%E9.wav")
