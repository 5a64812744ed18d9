"""The Dockerfile: what it copies exists, and the service answers as its user would run it, on a read-only disk."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[2]
LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()


def arguments(instruction: str) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in LINES if line.startswith(instruction + " ")]


def test_what_is_copied_is_there_and_not_ignored():
    taken = [word for line in arguments("COPY") if "--from" not in line for word in line.split()[:-1]]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"pyproject.toml", "lamb"} <= set(taken) == kept
    assert all((ROOT / name).exists() for name in taken)


def test_it_runs_as_a_user_without_rights():
    assert int(LINES[[line.startswith("USER") for line in LINES].index(True)].split()[1]) > 0
    stage = LINES[max(k for k, line in enumerate(LINES) if line.startswith("FROM")) :]
    assert any(line.startswith("USER") for line in stage)


def writable(path: str) -> list[str]:
    """A prefix for a command that sees a read-only disk but for `path`, and without rights."""
    mounts = f"mount --bind {path} {path} && mount -o remount,bind,ro /"
    return [
        "unshare",
        "--mount",
        "bash",
        "-c",
        f'{mounts} && exec setpriv --bounding-set=-all --inh-caps=-all -- "$0" "$@"',
    ]


def can_pretend() -> bool:
    tools = all(map(shutil.which, ("unshare", "setpriv")))
    return (
        tools and os.geteuid() == 0 and not subprocess.run([*writable("/tmp"), "true"], capture_output=True).returncode
    )


def test_the_service_answers_on_a_read_only_disk(tmp_path):
    """The commands of the Dockerfile, CMD and HEALTHCHECK, in this machine's own environment."""
    if not can_pretend():
        pytest.skip("mounts cannot be changed here: this needs root, unshare and setpriv")
    [command], [health] = (arguments("CMD"), [re.sub(r".*CMD ", "", line) for line in arguments("HEALTHCHECK")])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path / "tmp"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(home), "TMPDIR": str(home)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    serve = [*writable(str(home)), sys.executable, "-m", "lamb", *json.loads(command), "--port", str(port)]
    service = subprocess.Popen(
        serve, env=environment, cwd="/", stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 120
        while time.monotonic() < end and service.poll() is None:
            try:
                urlopen(address + "/readyz", timeout=5).close()
                break
            except (URLError, OSError):
                time.sleep(0.2)
        assert service.poll() is None, service.stderr.read()
        [_, *probe] = json.loads(health.replace("8000", str(port)))
        assert subprocess.run([sys.executable, *probe], env=environment).returncode == 0
        asked = ["curl", "-sf", "-F", f"file=@{ROOT / 'samples' / 'rain.flac'}", address + "/v1/caption"]
        told = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
        assert told["caption"].endswith(".")
    finally:
        service.terminate()
        service.wait(60)
