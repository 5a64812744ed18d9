"""Archives unpacked, resumed, broken and hostile."""

import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lamb.data import archives
from lamb.data.archives import ArchiveError, unpack

FILES = {"set/audio/a.wav": b"sound " * 5000, "set/audio/b.wav": os.urandom(70_000), "set/readme.txt": b"read me"}


def make_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("set/", b"")
        for name, content in files.items():
            file.writestr(name, content)


def make_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as file:
        folder = tarfile.TarInfo("set")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def make_seven(path: Path, files: dict[str, bytes]) -> None:
    py7zr = pytest.importorskip("py7zr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(py7zr.SevenZipFile, "_sanitize_archive_arcname", staticmethod(lambda name: name))
        patch.setattr("py7zr.py7zr.check_archive_path", lambda name: True)  # others' programs write what they like
        with py7zr.SevenZipFile(path, "w") as file:
            for name, content in files.items():
                file.writestr(content, name)


MAKERS: dict[str, Callable[[Path, dict[str, bytes]], None]] = {".zip": make_zip, ".tar.gz": make_tar, ".7z": make_seven}
each_kind = pytest.mark.parametrize("kind", MAKERS)


def wav(name: str) -> str | None:
    return name.removeprefix("set/") if name.endswith(".wav") else None


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@each_kind
def test_what_is_wanted_is_unpacked(kind, tmp_path, capsys):
    archive, folder = tmp_path / f"set{kind}", tmp_path / "to"
    MAKERS[kind](archive, FILES)
    unpack(archive, folder, wav)
    assert tree(folder) == {"audio/a.wav": FILES["set/audio/a.wav"], "audio/b.wav": FILES["set/audio/b.wav"]}
    assert capsys.readouterr().err == f"lamb: unpacking {archive}\n"


@each_kind
def test_an_interrupted_run_is_gone_on_with(kind, tmp_path):
    archive, folder = tmp_path / f"set{kind}", tmp_path / "to"
    MAKERS[kind](archive, FILES)
    (folder / "audio").mkdir(parents=True)
    (folder / "audio/a.wav").write_bytes(b"mine! " * 5000)  # of the same size: taken for the same
    (folder / "audio/b.wav").write_bytes(b"half")
    unpack(archive, folder, wav)
    assert tree(folder) == {"audio/a.wav": b"mine! " * 5000, "audio/b.wav": FILES["set/audio/b.wav"]}


@each_kind
@pytest.mark.parametrize(
    "name", ["../evil.wav", "set/../../evil.wav", "/tmp/evil.wav", "set\\..\\evil.wav", "C:/evil.wav"]
)
def test_a_name_that_leads_out_is_refused(kind, name, tmp_path):
    archive, folder = tmp_path / f"set{kind}", tmp_path / "deep" / "to"
    MAKERS[kind](archive, {**FILES, name: b"evil"})
    with pytest.raises(ArchiveError, match=r"refused, because its member '.*evil\.wav' leads out of the folder"):
        unpack(archive, folder, wav)
    assert not list(tmp_path.rglob("evil*"))
    assert not Path("/tmp/evil.wav").exists()


def link(kind: str, archive: Path) -> None:
    """An archive with a link to a folder outside, and a file that would be written through it."""
    if kind == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            info = zipfile.ZipInfo("set/out")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, "../..")
            file.writestr("set/out/evil.wav", b"evil")
    elif kind == ".tar.gz":
        with tarfile.open(archive, "w:gz") as file:
            info = tarfile.TarInfo("set/out")
            info.type, info.linkname = tarfile.SYMTYPE, "../.."
            file.addfile(info)
            evil = tarfile.TarInfo("set/out/evil.wav")
            evil.size = 4
            file.addfile(evil, io.BytesIO(b"evil"))
    else:
        py7zr = pytest.importorskip("py7zr")
        (archive.parent / "a").mkdir()
        (archive.parent / "a/b").touch()
        (archive.parent / "a/out").symlink_to("b")
        with py7zr.SevenZipFile(archive, "w") as file:
            file.write(archive.parent / "a/out", "set/out")


@each_kind
def test_a_link_is_refused(kind, tmp_path):
    archive, folder = tmp_path / f"set{kind}", tmp_path / "deep" / "to"
    link(kind, archive)
    with pytest.raises(ArchiveError, match=r"refused, because its member 'set/out' is a link or a device"):
        unpack(archive, folder, wav)
    assert tree(folder) == {}


@pytest.mark.parametrize("type", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_what_is_no_file_in_a_tar_is_refused(type, tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
        info = tarfile.TarInfo("a.wav")
        info.type, info.linkname = type, "/etc/passwd"
        file.addfile(info)
    with pytest.raises(ArchiveError, match=r"'a\.wav' is a link or a device"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "to", wav)


def test_a_link_in_the_folder_is_not_followed(tmp_path):
    make_zip(tmp_path / "set.zip", FILES)
    (tmp_path / "to").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "to/audio").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArchiveError, match=r"a link leads out of .*to; remove the link"):
        unpack(tmp_path / "set.zip", tmp_path / "to", wav)
    assert not list((tmp_path / "elsewhere").iterdir())


@each_kind
@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_archive(kind, damage, tmp_path):
    archive, folder = tmp_path / f"set{kind}", tmp_path / "to"
    MAKERS[kind](archive, FILES)
    content = bytearray(archive.read_bytes())
    if damage == "changed":
        content[20_000:20_100] = bytes(100)
    archive.write_bytes({"cut": content[: len(content) // 2], "changed": content, "empty": b""}[damage])
    with pytest.raises(ArchiveError, match=r"damaged \(.*\); delete it and run again"):
        unpack(archive, folder, wav)
    assert "audio/b.wav" not in tree(folder), "no half file under its own name"


def test_a_bomb_is_seen_before_it_goes_off(tmp_path, monkeypatch):
    make_zip(tmp_path / "set.zip", FILES)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ArchiveError, match=r"needs 0\.0 GB, but .* has 0\.0 GB free"):
        unpack(tmp_path / "set.zip", tmp_path / "to", wav)
    assert tree(tmp_path / "to") == {}


def test_an_unknown_kind(tmp_path):
    with pytest.raises(ArchiveError, match=r"a\.rar: not an archive of a known kind \(\.zip, \.tar\.gz, \.7z\)"):
        unpack(tmp_path / "a.rar", tmp_path, wav)


def test_7z_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "py7zr", None)
    (tmp_path / "set.7z").touch()
    told = r"pip install 'lamb-aac\[data\]'\), or unpack the archive by hand in .*\(7z x set\.7z\)"
    with pytest.raises(ArchiveError, match=told):
        unpack(tmp_path / "set.7z", tmp_path / "to", wav)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """A zip in three volumes, as WavCaps publishes its own."""
    if shutil.which("zip") is None:
        pytest.skip("the program zip is not here")
    for name, content in {**FILES, "set/audio/c.wav": os.urandom(100_000)}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    subprocess.run(["zip", "-q", "-r", "-s", "64k", "set.zip", "set"], cwd=tmp_path, check=True)
    assert (tmp_path / "set.z02").exists()
    return tmp_path / "set.zip"


def test_volumes_are_joined(volumes, tmp_path):
    unpack(volumes, tmp_path / "to", wav)
    assert tree(tmp_path / "to") == {
        name.removeprefix("set/"): (tmp_path / name).read_bytes()
        for name in ("set/audio/a.wav", "set/audio/b.wav", "set/audio/c.wav")
    }
    assert sorted(p.name for p in tmp_path.glob("set.*")) == ["set.z01", "set.z02", "set.zip"]


def test_a_volume_is_missing(volumes, tmp_path):
    (tmp_path / "set.z02").unlink()
    with pytest.raises(ArchiveError, match=r"its volumes set\.z02 are missing; download them and run again"):
        unpack(volumes, tmp_path / "to", wav)


def test_a_volume_is_cut(volumes, tmp_path):
    (tmp_path / "set.z02").write_bytes((tmp_path / "set.z02").read_bytes()[:1000])
    with pytest.raises(ArchiveError, match=r"cannot join its volumes|damaged"):
        unpack(volumes, tmp_path / "to", wav)
    assert not list(tmp_path.glob("*.joined*"))
    volumes.write_bytes(b"no end")
    with pytest.raises(ArchiveError, match="its end is missing"):
        unpack(volumes, tmp_path / "to", wav)


def test_volumes_without_the_program(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ArchiveError, match=r"the program `zip` has to join; install it \(apt install zip\), or unpack"):
        unpack(volumes, tmp_path / "to", wav)
