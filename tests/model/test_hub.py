"""A model goes to the Hugging Face hub and comes back: the real client, a stand-in hub on loopback.

The client reads its settings when it is imported, so it runs in processes of its own.
"""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_ThisIsASecretThatNobodyMaySee"
SHA = "a" * 40  # the only commit
Client = Callable[..., subprocess.CompletedProcess[str]]


class Hub(ThreadingHTTPServer):
    """As much of the hub as a push and a download of small models need; weights take the way of large files (LFS)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.created: dict[str, Any] = {}
        self.large: dict[str, bytes] = {}  # by sha256
        self.asked: list[str] = []  # "METHOD path" of every request
        self.tokens: set[str | None] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if (files := self.server.repos.get(repo)) is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif parts[4:5] == ["revision"]:
            siblings = [{"rfilename": name} for name in files]
            self.answer({"id": repo, "modelId": repo, "sha": SHA, "siblings": siblings, "private": True, "tags": []})
        elif parts[4:5] == ["tree"]:
            self.answer([{"type": "file", "path": name, "size": len(x), "oid": etag(x)} for name, x in files.items()])
        elif parts[2:3] == ["resolve"] and (content := files.get("/".join(parts[4:]))) is not None:
            self.answer(content, ETag=f'"{etag(content)}"', X_Repo_Commit=SHA)
        else:
            self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self.body()
        self.server.asked.append(f"POST {path}")
        self.server.tokens.add(self.headers["Authorization"])
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.server.created[repo] = asked
            self.server.repos.setdefault(repo, {})
            self.answer({"url": f"{self.server.url}/{repo}", "name": repo})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{self.server.url}/large/{item['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})
        elif parts[4:5] == ["preupload"]:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": modes})
        elif parts[4:5] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                value, repo = line["value"], "/".join(parts[2:4])
                if line["key"] == "file":
                    self.server.repos[repo][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.repos[repo][value["path"]] = self.server.large[value["oid"]]
            self.answer({"commitUrl": f"{self.server.url}/{repo}/commit/{SHA}", "commitOid": SHA})
        else:
            self.answer({})  # such as the check of a README's head

    def do_PUT(self) -> None:
        content = self.body()
        self.server.asked.append(f"PUT {self.path}")
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.answer({})


def etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(tmp_path: Path) -> Client:
    """client(url, code, *arguments): runs `code` in a Python whose hub is at `url`."""

    def run(url: str, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        settings = {
            "HF_ENDPOINT": url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        result = subprocess.run(
            [sys.executable, "-c", f"import sys\nfrom lamb.model import checkpoint\n{code}", *map(str, arguments)],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert TOKEN not in result.stdout + result.stderr
        return result

    return run


COMMAND = "from lamb.cli.app import main; sys.argv[:1] = ['lamb', 'push']; main()"
PUSH = "print(checkpoint.push_to_hub(sys.argv[1], sys.argv[2]))"
CAPTION = """
import numpy as np
from lamb import Captioner
x = np.random.default_rng(0).standard_normal(16000).astype("float32") / 9
print(repr(Captioner.load(sys.argv[1], "cpu").caption([(x, 16000)])[0]))
"""
REFUSED = """
try:
    {}
except checkpoint.CheckpointError as error:
    print(error)
"""


def test_a_model_goes_to_the_hub_and_comes_back(hub, client, model_folder):
    for stray in ("evil.pkl", "state.pt", "llm/pytorch_model.bin", "llm/code.py", "notes.txt"):
        (model_folder / stray).write_bytes(b"never to be seen")
    (model_folder / "README.md").write_text("# A model\n")
    mine = {"lamb.json", "model.safetensors", "README.md", *(f"llm/{p.name}" for p in model_folder.glob("llm/*.json"))}

    pushed = client(hub.url, COMMAND, model_folder, "somebody/tiny")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip() == f"{hub.url}/somebody/tiny"
    assert hub.repos["somebody/tiny"].keys() - {".gitattributes"} == mine
    assert hub.repos["somebody/tiny"]["model.safetensors"] == (model_folder / "model.safetensors").read_bytes()
    assert any(request.startswith("PUT /large/") for request in hub.asked), "weights go as a large file"
    assert hub.created["somebody/tiny"]["visibility"] == "private"
    assert hub.tokens == {f"Bearer {TOKEN}"}

    hub.repos["somebody/tiny"] |= {"evil.pkl": b"never", "llm/more.bin": b"never", "llm/code.py": b"never"}
    hub.asked.clear()
    there = client(hub.url, CAPTION, "somebody/tiny")
    assert there.returncode == 0, there.stderr
    fetched = {request.partition(f"resolve/{SHA}/")[2] for request in hub.asked if f"/resolve/{SHA}/" in request}
    assert fetched == mine
    assert there.stdout.startswith("Caption(file='<array>', duration=1.0, text='")
    assert there.stdout == client(hub.url, CAPTION, model_folder).stdout


def test_the_command_can_make_it_public_and_fails_in_one_line(hub, client, model_folder, tmp_path):
    assert client(hub.url, COMMAND, model_folder, "somebody/tiny", "--public").returncode == 0
    assert hub.created["somebody/tiny"]["visibility"] == "public"
    failed = client(unused_url(), COMMAND, model_folder, "a/b")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("lamb: error: a/b: the upload failed (")
    assert failed.stderr.count("\n") == 1


def test_what_was_downloaded_works_without_the_hub(hub, client, model_folder):
    hub.repos["a/b"] = {
        str(file.relative_to(model_folder)): file.read_bytes() for file in model_folder.rglob("*") if file.is_file()
    }
    describe = "print(checkpoint.describe(sys.argv[1])['licence'])"
    assert client(hub.url, describe, "a/b").stdout == "none\n"
    assert client(unused_url(), describe, "a/b").stdout == "none\n"


@pytest.mark.parametrize("name", ["nobody/nothing", "bad--name/x..y"])
def test_an_unknown_model(hub, client, name):
    result = client(hub.url, REFUSED.format("checkpoint.find(sys.argv[1])"), name)
    assert result.stdout.startswith(f"{name}: no such folder, and the Hugging Face hub does not give it ("), result
    assert result.stdout.endswith("); check the name and the network\n")


def test_a_hub_model_of_another_kind(hub, client):
    hub.repos["a/bert"] = {"config.json": b"{}", "pytorch_model.bin": b"never"}
    result = client(hub.url, REFUSED.format("checkpoint.find(sys.argv[1])"), "a/bert")
    assert result.stdout == "a/bert: this hub model holds no lamb.json, so it is not a lamb model\n"
    assert result.returncode == 0, result.stderr
    assert not any("resolve" in request for request in hub.asked)


def unused_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("action", ["checkpoint.find('a/b')", "checkpoint.push_to_hub(sys.argv[1], 'a/b')"])
def test_no_hub_at_all(client, model_folder, action):
    result = client(unused_url(), REFUSED.format(action), model_folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("a/b: ")
    assert "the network" in result.stdout
    assert result.stdout.count("\n") == 1


def test_a_hub_that_refuses_the_push(hub, client, model_folder, monkeypatch):
    refuse = lambda handler: (handler.body(), handler.answer({"error": "Forbidden: no write access"}, 403))
    monkeypatch.setattr(Handler, "do_POST", refuse)
    result = client(hub.url, REFUSED.format(PUSH), model_folder, "somebody/else")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("somebody/else: the upload failed (")
    assert "403" in result.stdout
    assert hub.repos == {}


def test_only_models_are_pushed(hub, client, tmp_path):
    (tmp_path / "secret.txt").write_text("private")
    result = client(hub.url, REFUSED.format(PUSH), tmp_path, "somebody/tiny")
    assert "holds no lamb.json" in result.stdout
    assert hub.asked == []
