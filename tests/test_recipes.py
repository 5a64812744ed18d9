"""The recipes run, each command as it stands in docs/recipes.md, and leave what they say."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from test_readme import ROOT, blocks, commands, run

RECIPES = "docs/recipes.md"
SRT = "1\n00:00:00,200 --> 00:00:01,000\nListen!\n\n2\n00:00:05,500 --> 00:00:06,500\nOver.\n"


def film(path: Path, sound: Path) -> None:
    """A film of grey pictures with the sound of a file."""
    import av
    import soundfile

    x, rate = soundfile.read(sound, dtype="float32")
    with av.open(str(path), "w") as container:
        video, audio = (
            container.add_stream("mpeg4", rate=5),
            container.add_stream("pcm_s16le", rate=rate, layout="mono"),
        )
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for _ in range(int(5 * len(x) / rate)):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 128, np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        frame = av.AudioFrame.from_ndarray((x[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in [*audio.encode(frame), *audio.encode(None), *video.encode(None)]:
            container.mux(packet)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lancedb", reason="lancedb is not installed (the extra `library`)")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `plot`)")
    folder = tmp_path_factory.mktemp("recipes")
    shutil.copytree(ROOT / "samples", folder / "samples")
    film(folder / "film.mkv", folder / "samples" / "siren.flac")
    (folder / "film.srt").write_text(SRT)
    for command in commands(RECIPES):
        ours = command.startswith("lamb ")
        line = command.replace("lamb ", "python -m lamb ", 1) if ours else command
        done = run(f"export PYTHONPATH={ROOT}; {line}", folder)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        with (folder / f"{command.split()[1] if ours else 'python'}.out").open("a") as file:
            file.write(done.stdout)
    for block in blocks(RECIPES, "python"):
        done = run(f"PYTHONPATH={ROOT} python - <<'END'\n{block}\nEND", folder)
        assert done.returncode == 0, done.stderr
        (folder / "library.out").write_text(done.stdout)
    return folder


def test_a_sound_is_found(clone: Path) -> None:
    found = (clone / "search.out").read_text()
    assert found.split("─ \n")[1].split()[0] == "samples/church_bells.flac"
    assert (clone / "rain.m3u").read_text().startswith("#EXTM3U\n#EXTINF:")
    first = (clone / "library.out").read_text().splitlines()[0]
    assert "siren.flac" in first


def test_words_have_their_times(clone: Path) -> None:
    told = json.loads((clone / "words.json").read_text())
    assert told["words"]
    assert all(0 <= w["start"] < w["end"] <= told["duration"] + 0.01 for w in told["words"])
    assert (clone / "words.png").stat().st_size > 5000


def test_a_stream_is_told(clone: Path) -> None:
    """The siren, in events of the shape that the page shows, each with its sound in a file."""
    events = [json.loads(line) for line in (clone / "listen.out").read_text().splitlines()]
    assert any("siren" in event["caption"] for event in events)
    (shown,) = [json.loads(block) for block in blocks(RECIPES, "json")]
    for event in events:
        assert event.keys() == {"clip", *shown}
        assert Path(event["clip"]).parent == Path("heard")
        assert (clone / event["clip"]).is_file()


def test_the_film_has_its_lines_and_its_sounds(clone: Path) -> None:
    merged = (clone / "film.sdh.srt").read_text()
    for line in SRT.splitlines():
        assert line in merged or line.isdigit()
    described = (clone / "sounds.vtt").read_text()
    assert described.startswith("WEBVTT")
    assert "[" in merged
    assert "[" in described


def test_the_tasks_fit_the_labelling_interface(clone: Path) -> None:
    names = {c.get("name") for c in ElementTree.parse(clone / "labeling.xml").iter() if c.get("name")}
    tasks = json.loads((clone / "tasks.json").read_text())
    assert len(tasks) == len(list((clone / "samples").glob("*.flac")))
    used = {part["from_name"] for task in tasks for p in task["predictions"] for part in p["result"]}
    assert used <= names


def test_commands_that_need_a_camera_are_known() -> None:
    from typer.testing import CliRunner

    from lamb.cli.app import app

    said = CliRunner().invoke(app, ["listen", "--help"]).output
    for block in blocks(RECIPES, "shell"):
        for word in block.split():
            if word.startswith("--"):
                assert word in said
