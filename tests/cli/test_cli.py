"""The command line against a stand-in captioner: options, formats, exit codes, what is left on disk and in a pipe."""

from __future__ import annotations

import csv
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from lamb.cli.app import main
from lamb.cli.errors import REMEDIES
from lamb.cli.output import ONE_RECORDING, Format
from lamb.inference.captions import WRITERS

# Stands in for lamb/inference/captioner.py, here and in processes of their own; a file's name says what happens to it.
FAKE = """
import time, warnings
from lamb.audio.reader import AudioDamage, AudioWarning
from lamb.errors import LambError, OptionError
from lamb.inference.captions import Caption, Segment, Timeline

class Captioner:
    @classmethod
    def load(cls, name, device=None, engine=None, threads=None):
        loads.append((engine, threads))
        if name == "nosuch":
            raise LambError("no model is called nosuch", "there is: tiny")
        return cls()

    def stream(self, inputs, n_best, beams, timeline=False, **options):
        calls.append({"n_best": n_best, "beams": beams, "timeline": timeline, **options})
        if n_best > (beams or 4):
            raise OptionError("n_best is more than beams")
        for source in inputs:
            file = getattr(source, "name", source)
            if "slow" in file:
                time.sleep(60)
            if "bug" in file:
                int("a bug of ours")
            if "wrong" in file:
                warnings.warn("wrong.wav: 3 samples\\nrepaired", AudioWarning)
                warnings.warn("of no interest")
            if "holes" in file:
                warnings.warn(AudioDamage("holes.mp3", "damaged: 3 s"))
            if "bad" in file:
                yield Caption(file, error="not audio; give a sound file")
                continue
            text = f"{len(source.read())} bytes." if source is not file else "A dog barks."
            segments = (Segment(0, 10, text, 0.5), Segment(5, 15, "Rain.")) if timeline else ()
            n = (text, "A cat meows.")[:n_best]
            yield Caption(file, 15.0, text, -0.25, 0.75, n, (-0.25, -2.0)[:n_best], segments)

    def timelines(self, inputs, listen, **options):
        def one(caption):
            for segment in caption.segments:
                yield segment
            return caption

        for caption in self.stream(inputs, timeline=True, **options):
            yield Timeline(caption.file, one(caption)) if caption.ok else caption

calls = []
loads = []
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("lamb.inference.captioner")
    exec(FAKE, module.__dict__)
    monkeypatch.setitem(sys.modules, "lamb.inference.captioner", module)
    return module


@pytest.fixture
def lamb(fake: types.ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process: arguments in; exit code, standard output and standard error out."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lamb", *map(str, arguments)])
        try:
            main()
        except SystemExit as exit:
            return int(exit.code or 0), *capsys.readouterr()
        raise AssertionError("main() returned")

    return run


CODE = (  # the command in a process of its own, with the same stand-in
    "import sys, types; m = types.ModuleType('lamb.inference.captioner'); sys.modules[m.__name__] = m;"
    f"exec({FAKE!r}, m.__dict__); from lamb.cli.app import main; main()"
)


def process(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """The command `lamb ARGUMENTS`, started."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], **{**pipes, **options})  # type: ignore[call-overload]


def test_one_file_is_one_sentence(lamb: Run, fake: types.ModuleType) -> None:
    assert lamb("caption", "dog.wav") == (0, "A dog barks.\n", "")
    left_out = dict.fromkeys(("beams", "seed", "batch_size", "window", "hop"))
    assert fake.calls == [{"n_best": 1, "timeline": False, "sample": False, "detailed": False, **left_out}]


def test_options_reach_the_captioner(lamb: Run, fake: types.ModuleType) -> None:
    options = "--n-best 2 --beams 3 --sample --seed 7 --batch-size 5 --detailed --timeline --window 10 --hop 5"
    assert lamb("caption", "a.wav", *options.split())[0] == 0
    assert fake.calls == [
        {"n_best": 2, "beams": 3, "sample": True, "seed": 7, "batch_size": 5, "timeline": True}
        | {"detailed": True, "window": 10.0, "hop": 5.0}
    ]


def test_a_failure_is_told_and_the_rest_captioned(lamb: Run) -> None:
    code, out, err = lamb("caption", "a.wav", "bad.wav", "c.wav")
    assert (code, err) == (1, "lamb: error: bad.wav: not audio; give a sound file\n")
    assert out == "a.wav\tA dog barks.\nc.wav\tA dog barks.\n"
    code, out, _ = lamb("caption", "a.wav", "bad.wav", "c.wav", "--format", "jsonl")
    assert code == 1
    assert [sorted(json.loads(line))[:2] for line in out.splitlines()][1] == ["error", "file"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--n-best 0", "--n-best"),
        ("--n-best 5 --beams 4", "--beams 5"),
        ("--window 0", "above 0"),
        ("--window nan", "above 0"),
        ("--hop -1", "above 0"),
        ("--window 5 --hop 10", "longer than the window"),
        ("--threads 0", "--threads"),
        ("--sample --seed -1", "--seed"),
        ("--format mp3", "mp3"),
        ("--output nosuch/folder/x.json", "no folder"),
        ("- -", "only once"),
        ("--nosuch", "--nosuch"),
        ("--n-best 5", "more than beams"),  # what the captioner says
    ],
)
def test_usage_errors(lamb: Run, arguments: str, message: str) -> None:
    code, out, err = lamb("caption", "a.wav", *arguments.split())
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_no_arguments_show_the_help(lamb: Run) -> None:
    assert lamb("caption")[0] == 2
    assert "caption" in "".join(lamb()[1:])


def test_an_unknown_model(lamb: Run, tmp_path: Path) -> None:
    code, out, err = lamb("caption", "a.wav", "--model", "nosuch", "--output", tmp_path / "a.json")
    assert (code, out, err) == (1, "", "lamb: error: no model is called nosuch; there is: tiny\n")
    assert list(tmp_path.iterdir()) == []


def test_a_bug_keeps_its_traceback(lamb: Run) -> None:
    """Only a LambError is shown in one line."""
    with pytest.raises(ValueError, match="invalid literal"):
        lamb("caption", "bug.wav")


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EACCES, errno.EISDIR, errno.EADDRINUSE, errno.EEXIST, errno.ENAMETOOLONG]
)
def test_what_the_operating_system_refuses_is_one_line_with_a_remedy(
    lamb: Run, fake: types.ModuleType, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(name: str, device: str | None = None, **options: object) -> None:
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr(fake.Captioner, "load", refused)
    code, out, err = lamb("caption", "a.wav")
    assert (code, out) == (1, "")
    assert err == f"lamb: error: some/file: {os.strerror(number)}; {REMEDIES[number]}\n"


def test_another_failure_of_the_system_keeps_its_traceback(
    lamb: Run, fake: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, device: str | None = None, **options: object) -> None:
        raise OSError("cannot be right")

    monkeypatch.setattr(fake.Captioner, "load", broken)
    with pytest.raises(OSError, match="cannot be right"):
        lamb("caption", "a.wav")


def test_warnings_are_a_line(lamb: Run) -> None:
    assert lamb("caption", "wrong.wav")[2] == "lamb: warning: wrong.wav: 3 samples\\nrepaired\n"
    assert lamb("caption", "wrong.wav", "--quiet")[::2] == (0, "")


def test_sound_that_is_lost_is_a_failure(lamb: Run) -> None:
    told = (1, "A dog barks.\n", "lamb: error: holes.mp3: damaged: 3 s; copy or download it again\n")
    for options in ((), ("--quiet",)):
        assert lamb("caption", "holes.mp3", *options) == told


@pytest.mark.parametrize("name", [*WRITERS, "label-studio", "table"])
def test_formats(lamb: Run, name: str) -> None:
    assert sorted(Format) == sorted([*WRITERS, "label-studio", "table"])
    files = ["a.wav"] if name in ONE_RECORDING else ["a.wav", "b.wav"]
    code, out, err = lamb("caption", *files, "--timeline", "--format", name)
    assert (code, err) == (0, "")
    assert out.count("A dog barks.") == len(files) * {"json": 3, "jsonl": 3, "text": 2, "label-studio": 2}.get(name, 1)
    if name in ONE_RECORDING:
        code, out, err = lamb("caption", "a.wav", "b.wav", "--format", name)
        assert (code, out) == (2, "")
        assert "--output-dir" in err


def test_table(lamb: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a[b].wav").touch()  # there, so no glob
    _, out, _ = lamb("caption", "a[b].wav", "bad.wav", "--n-best", "2", "--format", "table")
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert lines[0] == ["file", "length", "caption", "confidence"]
    assert lines[2:] == [
        ["a[b].wav", "15.0", "s", "A", "dog", "barks.", "0.75"],
        ["15.0", "s", "A", "cat", "meows."],
        ["bad.wav", "(failed)"],
    ]


def test_output_format_by_ending(lamb: Run, tmp_path: Path) -> None:
    for name in ("a.json", "a.CSV", "a.srt", "a.txt"):
        assert lamb("caption", "a.wav", "--output", tmp_path / name) == (0, "", "")
    assert json.loads((tmp_path / "a.json").read_text())[0]["file"] == "a.wav"
    assert next(csv.DictReader((tmp_path / "a.CSV").open()))["caption"] == "A dog barks."
    assert "-->" in (tmp_path / "a.srt").read_text()
    assert (tmp_path / "a.txt").read_text() == "A dog barks.\n"
    assert len(list(tmp_path.iterdir())) == 4
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask


def test_output_to_a_hyphen_is_standard_output(lamb: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lamb("caption", "a.wav", "--output", "-")[:2] == (0, "A dog barks.\n")
    assert list(tmp_path.iterdir()) == []


def test_output_is_complete_or_as_it_was(lamb: Run, tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("before")
    with pytest.raises(ValueError, match="invalid literal"):
        lamb("caption", "a.wav", "bug.wav", "--output", target)
    assert target.read_text() == "before"
    assert lamb("caption", "a.wav", "bad.wav", "--output", target)[0] == 1
    assert target.read_text() == "a.wav\tA dog barks.\n"
    assert list(tmp_path.iterdir()) == [target]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("--output a.wav b.wav", "is named like a recording"),  # the shell made it of --output *.wav
        ("b.wav --output b.wav", "is named like a recording"),
        ("new.wav -o other.MP3", "is named like a recording"),
        ("sound --output sound", "is an input"),
        ("a.wav --output link", "exists and is not a former result"),
        ("sound --format jsonl --output names.csv", "exists and is not a former result"),
        ("sound --format json --output README.md", "exists and is not a former result"),
        ("sound --output script.py", "exists and is not a former result"),
        ("a.wav b.wav --output {parent}.txt", "would both be written"),
        ("a.wav --output {stem}.flac", "is named like a recording"),
        ("a.wav b.wav --output x.txt --skip-existing", "one file per recording"),
        ("a.wav --output x.txt --output-dir y", "only one of"),
    ],
)
def test_no_recording_and_no_foreign_file_is_replaced(
    lamb: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "b.wav", "sound"):
        Path(name).write_bytes(b"RIFF\0\0" + name.encode())
    Path("link").symlink_to("sound")
    Path("names.csv").write_text("name,age\n")
    Path("README.md").write_text("# Mine\n")
    Path("script.py").write_text("print()\n")
    before = contents(tmp_path)
    code, out, err = lamb("caption", *arguments.split())
    assert (code, out) == (2, "")
    assert why in " ".join(err.split())
    assert contents(tmp_path) == before


def test_a_former_result_is_replaced(lamb: Run, tmp_path: Path) -> None:
    for name in ("a.txt", "a.json", "a.jsonl", "a.csv", "a.srt", "a.vtt", "a.labels", "a.selections.txt", "none"):
        target = tmp_path / name
        assert lamb("caption", "a.wav", "--output", target)[0] == 0
        first = target.read_text()
        assert lamb("caption", "a.wav", "--output", target) == (0, "", "")
        assert target.read_text() == first


def test_a_file_for_each_recording(lamb: Run, tmp_path: Path, fake: types.ModuleType) -> None:
    code, out, err = lamb("caption", "x/a.wav", "bad.wav", "b.wav", "--format", "srt", "--output-dir", tmp_path / "new")
    assert (code, out) == (1, "")
    assert err == "lamb: error: bad.wav: not audio; give a sound file\n"
    assert sorted(contents(tmp_path)) == ["new/a.srt", "new/b.srt"]
    assert (tmp_path / "new/b.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:15,000\nA dog barks.")
    lamb("caption", "a.wav", "--output", tmp_path / "new" / "{name}.json")
    assert json.loads((tmp_path / "new/a.wav.json").read_text())[0]["caption"] == "A dog barks."
    code, out, err = lamb("caption", "a.wav", "c.wav", "-f", "srt", "--output-dir", tmp_path / "new", "--skip-existing")
    assert (code, out) == (0, "")
    assert err == "lamb: note: 1 of 2 recordings were skipped, as their output exists\n"
    assert (tmp_path / "new/c.srt").exists()


def test_filters(lamb: Run, tmp_path: Path) -> None:
    assert lamb("caption", "a.wav", "--min-confidence", "0.8")[1] == ""
    assert lamb("caption", "a.wav", "--min-confidence", "0.7", "--only", "cat, dog")[1] == "A dog barks.\n"
    assert lamb("caption", "a.wav", "--ignore", "bark")[1] == ""
    rows = [json.loads(line) for line in lamb("caption", "a.wav", "--timeline", "-f", "jsonl", "--ignore", "RAIN")[1:2]]
    assert [segment["caption"] for segment in rows[0]["segments"]] == ["A dog barks."]
    lamb("caption", "a.wav", "b.wav", "--only", "cow", "--output-dir", tmp_path)
    assert contents(tmp_path) == {}


def test_a_file_whose_name_is_in_the_message_is_named(lamb: Run, fake: types.ModuleType) -> None:
    from lamb.inference.captions import Caption

    fake.Captioner.stream = lambda self, inputs, **options: (Caption(f, error="it is empty") for f in inputs)
    assert lamb("caption", "it")[2] == "lamb: error: it: it is empty\n"


@pytest.mark.parametrize(
    ("closed", "expected"),
    [
        ("2>&-", (1, "a.wav\tA dog barks.\n", "")),
        (">&-", (1, "", "lamb: error: standard output is closed; give --output FILE\n")),
        (">&- 2>&-", (1, "", "")),
        (">&- -o FILE", (1, "", "lamb: error: bad.wav: not audio; give a sound file\n")),
        ("2>&- -o FILE", (1, "", "")),
    ],
)
def test_closed_streams(tmp_path: Path, closed: str, expected: tuple[int, str, str]) -> None:
    code = [sys.executable, "-c", CODE, "caption", "a.wav", "bad.wav"]
    target = tmp_path / "a.txt"
    shell = f'"$@" {closed.replace("FILE", str(target))}'
    run = subprocess.run(["bash", "-c", shell, "-", *code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (run.returncode, run.stdout, run.stderr) == expected
    if "FILE" in closed:
        assert target.read_text() == "a.wav\tA dog barks.\n"


def test_an_empty_number_of_threads_is_ignored(lamb: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert lamb("caption", "a.wav")[0] == 0
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("columns", ["20", "60", "200"])
def test_a_table_keeps_the_caption_on_any_terminal(lamb: Run, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out = lamb("caption", "quite_a_long_name_of_a_recording.wav", "--format", "table")[1]
    assert "A dog barks." in out


def test_shell_completion() -> None:
    environment = {"_LAMB_COMPLETE": "complete_bash", "COMP_WORDS": "lamb capt", "COMP_CWORD": "1"}
    run = subprocess.run([sys.executable, "-c", CODE], env=os.environ | environment, capture_output=True, text=True)
    assert (run.stdout.strip(), run.stderr) == ("caption", "")


def test_output_to_a_device_or_through_a_link(lamb: Run, tmp_path: Path) -> None:
    assert lamb("caption", "a.wav", "--output", "/dev/null") == (0, "", "")
    assert not Path("/dev/null").is_file()
    link, target = tmp_path / "link.txt", tmp_path / "target.txt"
    link.symlink_to(target)
    assert lamb("caption", "a.wav", "--output", link)[0] == 0
    assert link.is_symlink()
    assert target.read_text() == "A dog barks.\n"


def test_threads_and_engine(lamb: Run, fake: types.ModuleType) -> None:
    assert lamb("caption", "a.wav", "--threads", "3", "--engine", "torch")[0] == 0
    assert lamb("caption", "a.wav")[0] == 0
    assert fake.loads == [("torch", 3), (None, None)]
    code, _, err = lamb("caption", "a.wav", "--engine", "tensorflow")
    assert (code, "'tensorflow' is not one of" in err) == (2, True)


def test_standard_input_and_names_that_are_no_unicode() -> None:
    with process("caption", "-", os.fsdecode(b"\xff.wav"), "--format", "text", text=False) as run:
        out, err = run.communicate(b"\x00" * 12)
    assert (run.returncode, err) == (0, b"")
    assert out == b"-\t12 bytes.\n\xff.wav\tA dog barks.\n"


def test_a_broken_pipe_is_quiet() -> None:
    with process("caption", *["a.wav"] * 5000, "--format", "jsonl") as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert '"a.wav"' in run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == 1


def test_control_c_leaves_nothing(tmp_path: Path) -> None:
    with process("caption", "a.wav", "slow.wav", "--output", tmp_path / "a.txt") as run:
        for _ in range(200):
            time.sleep(0.05)
            if list(tmp_path.iterdir()):
                break
        time.sleep(0.3)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=20)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_on_a_terminal_captions_stand_clear_of_the_bar() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with process("caption", "a.wav", "b.wav", stdout=theirs, stderr=theirs, env=environment) as run:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert run.returncode == 0
    assert b"0/2" in shown
    assert b"a.wav\tA dog barks.\r\n" in shown


def test_importing_the_command_line_is_light() -> None:
    heavy = ("torch", "transformers", "numpy", "soundfile", "av", "lamb.audio.reader")
    code = f"import sys, lamb.cli.app; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"


@pytest.mark.parametrize("command", ["", "caption", "train", "evaluate", "info"])
def test_help_fits_a_terminal(lamb: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = lamb(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80


def test_version(lamb: Run) -> None:
    code, out, _ = lamb("--version")
    assert code == 0
    assert out.startswith("lamb ")


def test_info(lamb: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "name": "tiny",
        "version": 1,
        "size_bytes": 12_345_678,
        "sample_rate": 16_000,
        "trained_on": ["ESC-50", "UrbanSound8K"],
        "parts": [{"part": "encoder", "kind": "efficientat", "parameters": 1_234_567, "trained": True}],
        "config": {"encoder": {"name": "efficientat"}},
    }
    small = {"name": "small", "size_bytes": 1, "measured": "names nine of ten"}
    module = types.SimpleNamespace(bundled=lambda: ["small"], describe={"tiny": facts, "small": small}.get)
    monkeypatch.setitem(sys.modules, "lamb.model.checkpoint", module)  # type: ignore[arg-type]
    code, out, _ = lamb("info")
    assert code == 0
    for shown in ("12.3 MB", "16000 Hz", "ESC-50, UrbanSound8K", "1,234,567", "yes", "names nine of ten"):
        assert shown in out
    assert json.loads(lamb("info", "--json")[1]) == facts


def test_train_calls_the_library(lamb: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[tuple[object, ...]] = []
    train = types.SimpleNamespace(train=lambda *given: called.append(given))
    monkeypatch.setitem(sys.modules, "lamb.training.train", train)  # type: ignore[arg-type]
    recipe = tmp_path / "tiny.yaml"
    recipe.touch()
    assert lamb("train", recipe, "train.steps=1", "--resume")[0] == 0
    assert called == [(recipe, ["train.steps=1"], True)]
    assert lamb("train", tmp_path / "no.yaml")[0] == 2


@pytest.fixture
def two_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Captions of two systems, then the manifest; scored without Java and models."""
    from lamb.evaluation import fense, reference_metrics
    from lamb.evaluation.resources import Unavailable

    def missing(*given: object) -> None:
        raise Unavailable("left out here", "lamb evaluate --download")

    monkeypatch.setattr(reference_metrics, "java", missing)
    for name in ("Sentences", "FluencyDetector"):
        monkeypatch.setattr(fense, name, missing)
    monkeypatch.chdir(tmp_path)
    rows = {"m": ["captions", ["A dog barks.", "A dog"]], "a": ["caption", "A dog barks."], "b": ["caption", "Rain."]}
    for name, (key, value) in rows.items():
        more = {"path": "x.wav"} if name == "m" else {}
        lines = [json.dumps({"id": id, key: value, **more}) for id in ("one", "two")]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return ["a.jsonl", "b.jsonl", "m.jsonl"]


def test_evaluate_predictions(lamb: Run, two_systems: list[str], tmp_path: Path) -> None:
    a, _, data = two_systems
    code, out, err = lamb("evaluate", "--predictions", a, data)
    assert code == 0
    assert re.search(r"rouge_l +1\.0000 +1\.0000 to 1\.0000", out)
    assert "lamb: note: tokens by lamb's own tokenizer" in err
    assert "lamb: left out: meteor, spice, spider, spider_fl, fense, sbert, fluency_errors: left out here" in err
    code, out, err = lamb("evaluate", "--predictions", a, data, "--json", "--quiet", "--csv", "clips.csv")
    assert (code, err) == (0, "")
    assert json.loads(out)["rouge_l"] == 1.0
    assert len((tmp_path / "clips.csv").read_text().splitlines()) == 3


def test_evaluate_compare_and_people(lamb: Run, two_systems: list[str]) -> None:
    a, b, data = two_systems
    code, out, _ = lamb("evaluate", "--compare", a, b, data)
    assert code == 0
    assert re.search(r"rouge_l +1\.0000 +0\.0000 +\+1\.0000 +0\.\d{4}", out)
    assert f"A: {a}\nB: {b}\n" in out
    compared = json.loads(lamb("evaluate", "--compare", a, b, data, "--json")[1])
    assert [one["rouge_l"] for one in compared["systems"]] == [1.0, 0.0]
    assert compared["test"]["rouge_l"]["difference"] == 1.0
    assert json.loads(lamb("evaluate", "--human", data, "--json")[1])["clips"] == 2


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "expected MODEL and DATA, got: nothing"),
        (["data"], "expected MODEL and DATA, got: data"),
        (["--human", "tiny", "data"], "expected DATA alone, got: tiny data"),
        (["--human", "--compare", "a", "b", "data"], "give only one of --predictions, --compare and --human"),
        (["tiny", "data", "--csv", "."], ". is a folder"),
        (["--predictions", "a.jsonl", "nosuch.jsonl"], "nosuch.jsonl: does not exist; check the path"),
    ],
)
def test_evaluate_given_what_does_not_fit(lamb: Run, two_systems: list[str], given: list[str], problem: str) -> None:
    code, out, err = lamb("evaluate", *given)
    assert (code, out) == (2, "")
    assert problem in " ".join(err.split())


def test_evaluate_replaces_no_input(lamb: Run, two_systems: list[str], tmp_path: Path) -> None:
    a, _, data = two_systems
    (tmp_path / "p.csv").write_text("id,caption\none,A dog.\ntwo,A cat.\n")
    before = contents(tmp_path)
    for target, why in (("p.csv", "p.csv is an input"), (data, "is an input"), (a, "not a former result")):
        code, out, err = lamb("evaluate", "--predictions", "p.csv", data, "--csv", target)
        assert (code, out) == (2, "")
        assert why in " ".join(err.split())
    assert contents(tmp_path) == before


def test_evaluate_in_a_folder_that_cannot_be_written_to(
    lamb: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lamb.evaluation import evaluate as evaluation

    asked: list[object] = []
    monkeypatch.setattr(evaluation, "evaluate_models", lambda *given, **options: asked.append(given[3]) or [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file where the folder would be")
    with pytest.raises(IndexError):  # there is no result to print
        lamb("evaluate", "tiny", "data", "--json")
    assert asked == [[None]]


def test_evaluate_fails_where_clips_fail(lamb: Run, two_systems: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"id": "one", "caption": "A dog"}\n{"id": "two", "error": "broken"}')
    code, out, err = lamb("evaluate", "--predictions", "c.jsonl", two_systems[2])
    assert code == 1
    assert "rouge_l" in out
    assert "c.jsonl: 1 of 2 clips could not be captioned; they count as empty captions" in err


def test_an_empty_folder_does_not_keep_the_rest_from_being_captioned(lamb: Run, tmp_path: Path) -> None:
    code, out, err = lamb("caption", tmp_path, "dog.wav", tmp_path / "*.ogg")
    assert (code, out) == (1, "A dog barks.\n")
    assert [line.split(": ")[2] for line in err.splitlines()] == [str(tmp_path), str(tmp_path / "*.ogg")]
    for alone in (tmp_path, tmp_path / "*.ogg"):
        code, out, err = lamb("caption", alone)
        assert (code, out) == (2, "")
        assert str(alone) in err
