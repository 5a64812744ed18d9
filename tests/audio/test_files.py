"""lamb.audio.files: what the user's paths mean, and results that appear whole or not at all."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lamb.audio.errors import AudioError
from lamb.audio.files import FileError, expand, replacing, write

# ---- paths


@pytest.fixture
def tree(tmp_path):
    for file in ("b.wav", "a.MP3", "notes.txt", ".hidden.wav", "sub/c.flac", "sub/deep/d.ogg", ".git/e.wav", "[1].wav"):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "none").mkdir()
    return tmp_path


def test_expand(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert expand(["b.wav", "-", "missing.wav", "notes.txt"], False) == ["b.wav", "-", "missing.wav", "notes.txt"]
    assert expand(["."], False) == ["./[1].wav", "./a.MP3", "./b.wav"]
    assert expand(["sub"], False) == ["sub/c.flac"]
    assert expand(["sub"], True) == ["sub/c.flac", "sub/deep/d.ogg"]
    assert expand(["*.wav"], False) == ["[1].wav", "b.wav"]
    assert expand(["[1].wav"], False) == ["[1].wav"]  # a file of this name goes before the pattern
    assert expand(["sub/**/*.*"], False) == ["sub/c.flac", "sub/deep/d.ogg"]
    assert expand([str(tree)], True)[-1] == str(tree / "sub/deep/d.ogg")
    assert not any("e.wav" in file for file in expand(["."], True))
    assert expand([], False) == []


def test_expand_refuses(tree, monkeypatch):
    monkeypatch.chdir(tree)
    with pytest.raises(AudioError, match=r"none: a folder without audio files.*--recursive"):
        expand(["none"], False)
    with pytest.raises(AudioError, match="none: a folder without audio files"):
        expand(["none"], True)
    with pytest.raises(AudioError, match=r"\*\.opus: matches no file"):
        expand(["*.opus"], False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_expand_closed_folder(tree):
    (tree / "none").chmod(stat.S_IWUSR)
    with pytest.raises(AudioError, match="cannot be listed"):
        expand([str(tree / "none")], False)


def test_what_cannot_be_listed_below_a_folder_is_told_and_the_rest_is_found(tree, monkeypatch):
    real = os.scandir

    def scandir(path="."):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    problems = []
    found = expand([str(tree)], True, problems)
    assert [os.path.basename(file) for file in found] == ["[1].wav", "a.MP3", "b.wav", "c.flac"]
    assert [str(problem) for problem in problems] == [
        f"{tree}/sub/deep: cannot be listed (Permission denied); check its permissions"
    ]


def test_a_pipe_in_a_folder_is_not_waited_for(tree):
    os.mkfifo(tree / "pipe.wav")
    problems = []
    assert f"{tree}/pipe.wav" not in expand([str(tree)], False, problems)
    assert [str(p) for p in problems] == [
        f"{tree}/pipe.wav: a pipe or a device, not a file; copy what it gives to a file"
    ]
    assert expand([str(tree / "pipe.wav")], False) == [str(tree / "pipe.wav")], "one that is named may be meant"


# ---- results


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.txt"
    write(file, "naïve")
    assert file.read_bytes() == "naïve".encode()
    with replacing(file) as part:
        part.write_text("half")
        assert file.read_text("utf-8") == "naïve"
    assert file.read_text() == "half"
    with pytest.raises(UnicodeEncodeError), replacing(file, durable=True) as part:
        part.write_text("lost \ud800", "utf-8")
    assert file.read_text() == "half"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_that_write_the_same_do_not_mix(tmp_path):
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"
    assert os.listdir(tmp_path) == ["a"]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    write(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_links_and_pipes_stay(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "x"
    write("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize(
    ("path", "message"),
    [(".", r"a folder; name a file in it"), ("none/a.txt", r"none/a.txt: there is no folder .*none; make it first")],
)
def test_a_place_that_cannot_be_written_to_is_told_at_once(tmp_path, path, message):
    with pytest.raises(FileError, match=message), replacing(tmp_path / path):
        pytest.fail("the block must not run")
    assert isinstance(FileError("x"), OSError)


def test_a_full_disk_has_a_remedy(tmp_path):
    with (
        pytest.raises(FileError, match=r"a.txt: there is no room left for it; make room"),
        replacing(tmp_path / "a.txt"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ConnectionResetError), replacing(tmp_path / "a.txt"):
        raise ConnectionResetError(errno.ECONNRESET, "no business of the file")
    assert not os.listdir(tmp_path)


def test_sigterm_leaves_nothing_half_written(tmp_path):
    code = """
import sys, time
from lamb.audio.files import replacing
with replacing(sys.argv[1]) as outer, replacing(sys.argv[1] + "2") as inner:
    print("ready", flush=True)
    time.sleep(60)
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        assert len(os.listdir(tmp_path)) == 2
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM
    assert not os.listdir(tmp_path)


def test_a_handler_of_the_programs_own_is_kept(tmp_path):
    before = signal.signal(signal.SIGTERM, mine := lambda *_: None)
    try:
        with replacing(tmp_path / "a"):
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    with replacing(tmp_path / "a"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
