"""Downloads from a server on loopback that breaks off, lies and refuses."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lamb.data import download
from lamb.data.download import DownloadError, fetch

CONTENT = bytes(range(256)) * 4000  # 1 MB
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges = True  # can start in the middle
        self.lies = 0  # bytes by which a part is another than was asked for
        self.breaks: list[int] = []  # bytes after which connections break off, one a request
        self.statuses: list[int] = []  # said in place of an answer, one a request
        self.asked: list[str | None] = []  # the Range of every request
        self.url = f"http://127.0.0.1:{self.server_port}/archive.zip?download=1"

    def handle_error(self, *arguments: object) -> None:
        pass  # a client that went away is what is tested


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        content = self.server.content
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            start += self.server.lies
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.server.breaks.pop(0) if self.server.breaks else len(content)
        self.wfile.write(content[start:end])
        if end < len(content):
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: Server, path: Path, md5: str | None = MD5, tries: int = 3) -> bytes:
    return fetch(server.url, path, md5, tries=tries, pause=0.01).read_bytes()


def test_a_file_comes_once(server, tmp_path, capsys):
    path = tmp_path / "new" / "archive.zip"
    assert get(server, path) == CONTENT
    assert capsys.readouterr().err == f"lamb: downloading {server.url}\n"
    assert get(server, path) == CONTENT
    assert server.asked == [None]
    assert list(path.parent.iterdir()) == [path]


def test_a_broken_connection_is_gone_on_with(server, tmp_path):
    server.breaks = [300_000, 1, 400_000, 5]
    assert get(server, tmp_path / "archive.zip", tries=2) == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=300001-", "bytes=700001-", "bytes=700006-"]


def test_a_broken_run_is_gone_on_with(server, tmp_path):
    path = tmp_path / "archive.zip"
    server.breaks = [500_000, 0]
    with pytest.raises(
        DownloadError, match=r"broke off after 500000 of 1024000 bytes; run again to continue from there"
    ):
        get(server, path, tries=1)
    assert not path.exists()
    assert (tmp_path / "archive.zip.part").read_bytes() == CONTENT[:500_000]
    assert get(server, path) == CONTENT
    assert server.asked == [None, "bytes=500000-", "bytes=500000-"]


def test_a_server_that_always_starts_anew(server, tmp_path):
    server.ranges, server.breaks = False, [300_000]
    assert get(server, tmp_path / "archive.zip") == CONTENT


def test_a_server_that_sends_another_part(server, tmp_path):
    server.lies, server.breaks = 7, [300_000]
    assert get(server, tmp_path / "archive.zip") == CONTENT
    assert server.asked == [None, "bytes=300000-", None]


def test_a_part_that_is_all_there(server, tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(CONTENT)
    assert get(server, tmp_path / "archive.zip") == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_that_is_longer_than_the_file(server, tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path / "archive.zip") == CONTENT


def test_a_part_of_another_file_is_thrown_away(server, tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(b"of yesterday")
    assert get(server, tmp_path / "archive.zip") == CONTENT
    assert server.asked == ["bytes=12-", None]


def test_a_wrong_checksum(server, tmp_path):
    path = tmp_path / "archive.zip"
    with pytest.raises(
        DownloadError, match=r"not the file that was published \(MD5 is not 0{32}\); run again, or down"
    ):
        get(server, path, "0" * 32)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"by hand")
    with pytest.raises(DownloadError, match=r"archive\.zip: not the file .*; delete it and run again"):
        get(server, path)
    assert path.read_bytes() == b"by hand", "what the user put there is the user's"


def test_a_file_without_a_checksum_has_the_stated_length(server, tmp_path):
    server.breaks = [10, 0]
    with pytest.raises(DownloadError, match="broke off after 10 of 1024000 bytes"):
        get(server, tmp_path / "archive.zip", None, tries=1)
    assert get(server, tmp_path / "archive.zip", None) == CONTENT


def test_a_file_that_is_not_there_is_asked_for_once(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1.*the server says 404 Not Found; download it by hand to"):
        get(server, tmp_path / "archive.zip")
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 429]
    assert get(server, tmp_path / "archive.zip") == CONTENT
    server.statuses = [503] * 9
    with pytest.raises(DownloadError, match="503 Service Unavailable; run again"):
        get(server, tmp_path / "another.zip")
    assert len(server.asked) == 3 + 3


def test_no_server(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match=rf"^http://127.0.0.1:{port}/a: .*refused.*; run again .*, or download it "):
        fetch(f"http://127.0.0.1:{port}/a", tmp_path / "a", tries=2, pause=0.01)


def test_no_network(tmp_path, monkeypatch):
    def unknown(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DownloadError) as caught:  # at once: with the usual pauses this would take 15 s
        fetch("https://zenodo.invalid/a.7z", tmp_path / "a.7z")
    assert str(caught.value) == (
        "https://zenodo.invalid/a.7z: no network, or no such host (Name or service not known); run again to continue "
        f"from there, or download it by hand to {tmp_path}/a.7z and run again"
    )


def test_a_disk_that_is_too_small(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=r"0\.0 GB to come and 0\.0 GB free in .*; make room"):
        get(server, tmp_path / "archive.zip")
    assert not (tmp_path / "archive.zip").exists()


def test_the_hub_out_of_reach(tmp_path):
    with pytest.raises(DownloadError) as caught:
        download.from_hub("cvssp/WavCaps", ["json_files/SoundBible/sb_final.json"], tmp_path / "wavcaps")
    assert str(caught.value).startswith("https://huggingface.co/datasets/cvssp/WavCaps: ")
    remedy = f"sb_final.json by hand into {tmp_path}/wavcaps and run again"
    assert str(caught.value).endswith(f"download json_files/SoundBible/{remedy}")


def test_the_hub_gives_files(tmp_path, monkeypatch):
    asked = []

    def snapshot(repo, **options):
        asked.append((repo, options))
        (options["local_dir"] / "Zip_files").mkdir(parents=True)
        (options["local_dir"] / "Zip_files/a.zip").write_bytes(b"a")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    download.from_hub("a/b", ["Zip_files/*"], tmp_path)
    assert asked == [("a/b", {"repo_type": "dataset", "allow_patterns": ["Zip_files/*"], "local_dir": tmp_path})]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: None)
    with pytest.raises(DownloadError, match=r"a/b: json_files/x\.json did not come; check the network"):
        download.from_hub("a/b", ["Zip_files/*", "json_files/x.json"], tmp_path)
