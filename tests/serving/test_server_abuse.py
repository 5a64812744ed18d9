"""What strangers send: broken and hostile files, forms and names; decoders that die or hang."""

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hostile
import httpx
import pytest
from served import FILES, Served, running, until

from lamb.audio import sandbox

GOOD = FILES[-1].read_bytes()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with running(decode_timeout=10, decoders=2, max_duration=60) as it:
        yield it


def post(served: Served, content: bytes, name: str = "sound") -> httpx.Response:
    return httpx.post(f"{served.url}/v1/caption", files={"file": (name, content)}, timeout=120)


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_broken_files_harm_nobody(served, count, capsys):
    """Each is captioned or refused with a reason; no 5xx, and all decoders are there afterwards."""
    said: Counter[int] = Counter()
    with ThreadPoolExecutor(4) as pool:
        for (kind, _), answer in zip(
            hostile.files(count), pool.map(lambda file: post(served, file[1]), hostile.files(count)), strict=True
        ):
            said[answer.status_code] += 1
            assert answer.status_code in (200, 422), (kind, answer.text)
            assert answer.status_code == 422 or kind not in hostile.strange(), kind
            assert "root:" not in answer.text, "no playlist opens other files"
            if answer.status_code == 422:
                assert "; " in answer.json()["error"]["message"], "a problem and a remedy"
    assert said[422] > count / 3
    until(lambda: served.service.taken == 0)  # it is counted off after the answer
    assert post(served, GOOD).status_code == 200
    with capsys.disabled():
        ended = [f"{s.labels['reason']} {s.value:.0f}" for s in _ended(served) if s.name.endswith("_total")]
        print(f"\n{count} files: {dict(said)}, decoders ended: {ended or 'none'}")


def _ended(served: Served) -> list:
    return [sample for metric in served.service.metrics.deaths.collect() for sample in metric.samples]


def decoders() -> list[int]:
    """Process ids of the decoders that are there: children of the monitors of the one server."""
    assert sandbox._current
    return [pid for monitor in children(sandbox._current.process.pid) for pid in children(monitor)]


def children(pid: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def test_a_decoder_killed_in_the_middle(served):
    """It takes its own request with it, told as 422, and no other."""
    assert post(served, GOOD).status_code == 200
    pids = decoders()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(post, served, GOOD) for _ in range(6)]
        until(lambda: served.service.taken == 6 and served.service.decoders._free.locked())
        os.kill(pids[0], signal.SIGKILL)
        for pid in pids[1:]:
            os.kill(pid, signal.SIGCONT)
        said = Counter(answer.result().status_code for answer in answers)
    assert said == {200: 5, 422: 1}
    died = next(answer.result() for answer in answers if answer.result().status_code == 422)
    assert "so damaged that its decoder died" in died.json()["error"]["message"]
    assert pids[0] not in decoders()


def test_a_decoder_that_hangs():
    with running(decode_timeout=0.5, decoders=1) as it:
        assert post(it, GOOD).status_code == 200
        pids = decoders()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        answer = post(it, GOOD)
        assert answer.status_code == 422
        assert "not decoded within 0.5 s" in answer.json()["error"]["message"]
        until(lambda: set(pids) - set(decoders()))
        for pid in set(pids) & set(decoders()):
            os.kill(pid, signal.SIGCONT)
        assert post(it, GOOD).status_code == 200


def test_no_name_reaches_the_file_system(served):
    opened: list[str] = []

    def watch(event: str, arguments: tuple) -> None:
        if watching.is_set() and event in ("open", "os.rename", "os.mkdir", "os.listdir", "os.stat"):
            opened.append(str(arguments[0]))

    watching = threading.Event()
    watching.set()
    sys.addaudithook(watch)
    name = "../../../tmp/evil-name.wav"
    big = GOOD + bytes(2 * 10**6)  # more than stays in memory
    try:
        answers = [post(served, content, name) for content in (GOOD, big, b"nothing")]
    finally:
        watching.clear()
    assert answers[0].json()["file"] == name, "the client's own word for it comes back"
    assert opened
    assert not [path for path in opened if "evil" in path]


@pytest.mark.parametrize(
    "charset",
    ["utf-8", "undefined", "punycode", "idna", "bz2", "rot13", "raw_unicode_escape", "unicode_escape", "utf-7", "nope"],
)
def test_forms_in_odd_charsets(served, charset):
    for part in (
        b'Content-Disposition: form-data; name="file"; filename="\\ud800\xff"\r\n\r\n' + GOOD,
        b'Content-Disposition: form-data; name="\\ud800\xff"\r\n\r\n\\udfff\xff',
    ):
        body = b"--x\r\n" + part + b"\r\n--x--\r\n"
        headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
        answer = httpx.post(f"{served.url}/v1/caption", content=body, headers=headers, timeout=120)
        assert answer.status_code in (200, 400, 422), answer.text
        assert answer.json()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"no boundary"),
        ("multipart/form-data; boundary=x", b"--y\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + bytes(10**6) + b"\r\n--x--",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 100 + b"--x--",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nb\r\n' * 5 + b"--x--",
        ),
        ("application/json", b'{"file": "/etc/passwd"}'),
    ],
)
def test_forms_that_are_none(served, kind, body):
    answer = httpx.post(f"{served.url}/v1/caption", content=body, headers={"content-type": kind}, timeout=120)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]
