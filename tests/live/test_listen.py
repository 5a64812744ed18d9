"""Listening over real streams on loopback: they come, die, come back; nothing secret is told of them."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from lamb.config import ListenConfig
from lamb.errors import PackageError
from lamb.inference.captioner import Captioner
from lamb.live import sources
from lamb.live.clips import save
from lamb.live.listen import Listener
from lamb.live.sources import SourceError, StreamError, opener, told

RATE = 16_000
SECRET = "s3cret"
QUICK = ListenConfig(first_wait=0.05, last_wait=0.2, patience=2.0)


def sound(seconds=1.0):
    rng = np.random.default_rng(0)
    quiet = np.zeros(round(1.5 * RATE), np.float32)
    return np.concatenate([quiet, 0.2 * rng.standard_normal(round(seconds * RATE)).astype(np.float32), quiet])


def encoded(x, format="FLAC"):
    file = io.BytesIO()
    soundfile.write(file, x, RATE, format=format)
    return file.getvalue()


@pytest.fixture
def captioner(make_model):
    return Captioner(make_model())


def listener(captioner, open_stream, config=QUICK, **options):
    return Listener(captioner.engine, captioner.options, open_stream, config, **options)


@contextmanager
def server(*answers):
    """Answers each request with the next of `answers`, bytes that it breaks off after; then with an error."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if not left:
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", "audio/flac")
            self.send_header("Content-Length", str(len(left[0])))
            self.end_headers()
            self.wfile.write(left.pop(0))

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://user:{SECRET}@127.0.0.1:{http.server_port}/live?token={SECRET}"
    finally:
        http.shutdown()
        http.server_close()


def test_events_of_a_stream_over_http(captioner):
    with server(encoded(sound())) as address:
        [event] = listener(captioner, opener(address, RATE, 2.0, sys.stdin.buffer), tries=0)
    assert event.start == pytest.approx(1.4, abs=0.25)
    assert event.end == pytest.approx(2.5, abs=0.25)


def test_a_stream_that_dies_comes_back(captioner):
    said, states = [], []
    whole = encoded(sound())
    with server(whole[: len(whole) // 2], whole) as address:
        heard = listener(
            captioner, opener(address, RATE, 2.0, sys.stdin.buffer), say=said.append, changed=states.append, tries=2
        )
        events = []
        with pytest.raises(StreamError, match="cannot be opened"):
            events.extend(heard)
    assert len(events) >= 2, "one before the loss, one after it"
    assert states == ["online", "offline", "online", "offline"]
    assert all("trying again in" in message for message in said)
    assert SECRET not in " ".join(said)


def test_waiting_grows_between_tries(captioner):
    said = []

    def never():
        raise StreamError("gone")
        yield

    with pytest.raises(StreamError):
        list(listener(captioner, never, say=said.append, tries=4))
    assert [message.rpartition("in ")[2] for message in said] == ["0.05 s", "0.1 s", "0.2 s", "0.2 s"]


@contextmanager
def rtsp(x):
    """A camera: RTSP over TCP, PCM of 16 bits in RTP packets, in real time."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    sdp = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=audio 0 RTP/AVP 97\r\n"
    sdp += f"a=rtpmap:97 L16/{RATE}/1\r\na=control:track1\r\n"
    seen = []

    def serve():
        connection, _ = listening.accept()
        with connection, connection.makefile("rb") as file:
            while line := file.readline():
                lines = [line.decode()]
                while (header := file.readline()) not in (b"\r\n", b""):
                    lines.append(header.decode())
                seen.append(lines[0].split()[0])
                number = next(h for h in lines if h.lower().startswith("cseq")).split(":")[1].strip()
                answer = f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\nSession: 1\r\n"
                if lines[0].startswith("DESCRIBE"):
                    answer += f"Content-Base: rtsp://127.0.0.1:{port}/\r\nContent-Type: application/sdp\r\n"
                    answer += f"Content-Length: {len(sdp)}\r\n\r\n{sdp}"
                elif lines[0].startswith("SETUP"):
                    answer += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n"
                else:
                    answer += "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n\r\n"
                connection.sendall(answer.encode())
                if lines[0].startswith("PLAY"):
                    break
            pcm = (np.clip(x, -1, 1) * 32767).astype(">i2")
            for k, begin in enumerate(range(0, len(pcm), 320)):
                body = pcm[begin : begin + 320].tobytes()
                head = bytes([0x80, 97]) + k.to_bytes(2, "big") + begin.to_bytes(4, "big") + b"\0\0\0\1"
                try:
                    connection.sendall(b"$\0" + len(head + body).to_bytes(2, "big") + head + body)
                except OSError:
                    return
                time.sleep(0.002)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"rtsp://user:{SECRET}@127.0.0.1:{port}/", seen
    finally:
        listening.close()


def test_events_of_a_camera(captioner):
    with rtsp(sound()) as (address, seen):
        events = list(listener(captioner, opener(address, RATE, 3.0, sys.stdin.buffer), tries=0))
    assert "PLAY" in seen
    assert len(events) == 1
    assert events[0].end - events[0].start == pytest.approx(1.0, abs=0.4)


def test_a_microphone(captioner, monkeypatch):
    """A stand-in for sounddevice that gives a sound at its own rate, and then no more."""
    x = np.repeat(sound(), 3)  # 48 kHz

    class InputStream:
        def __init__(self, samplerate, device, channels, dtype, callback):
            assert (samplerate, device, channels, dtype) == (48_000, 3, 1, "float32")
            self.callback = callback

        def __enter__(self):
            for begin in range(0, len(x), 4800):
                self.callback(x[begin : begin + 4800, None], 4800, None, None)

        def __exit__(self, *args):
            pass

    fake = SimpleNamespace(
        InputStream=InputStream, query_devices=lambda *a: {"default_samplerate": 48_000.0}, PortAudioError=RuntimeError
    )
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    events = []
    with pytest.raises(StreamError, match="no sound any more"):
        events.extend(listener(captioner, opener("mic:3", RATE, 0.3, sys.stdin.buffer), tries=0))
    assert len(events) == 1


def test_a_microphone_that_is_not_there(monkeypatch):
    def missing(*args):
        if args:
            raise ValueError("No input device matching 'usb'")
        return [{"name": "Built-in", "max_input_channels": 1}, {"name": "Speaker", "max_input_channels": 0}]

    fake = SimpleNamespace(query_devices=missing, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    with pytest.raises(StreamError, match="there are: Built-in"):
        next(opener("mic:usb", RATE, 1.0, sys.stdin.buffer)())


def test_a_package_that_is_missing_is_not_tried_again(captioner, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(PackageError, match=r"needs sounddevice; pip install 'lamb-aac\[live\]'"):
        list(listener(captioner, opener("mic:", RATE, 1.0, sys.stdin.buffer)))


def test_a_model_that_is_too_slow_drops_and_says_so(captioner):
    """Half of the sound comes while the model is at its first look."""
    said, much = [], threading.Event()
    engine = captioner.engine

    class Slow:
        sample_rate, frame_rate, dim = engine.sample_rate, engine.frame_rate, engine.dim

        def encode(self, x, size):
            assert much.wait(60)
            return engine.encode(x, size)

        describe = staticmethod(engine.describe)

    def stream():
        for k in range(100):
            if k == 50:
                much.set()
            yield np.tile(np.float32([0.1, -0.1]), RATE // 4)

    config = ListenConfig(held=2.0)
    heard = Listener(Slow(), captioner.options, stream, config, say=said.append, tries=0)
    events = list(heard)
    assert any("falls behind" in message for message in said)
    assert events[-1].end == pytest.approx(50, abs=1.0), "the clock goes on over what was not heard"


def test_standard_input_waits_for_the_model(captioner):
    said = []
    file = io.BytesIO(encoded(np.tile(sound(0.5), 10), "WAV"))
    config = ListenConfig(held=1.0)
    heard = listener(captioner, opener("-", RATE, 1.0, file), config, say=said.append, tries=0, live=False)
    assert len(list(heard)) == 10
    assert said == []


def test_stop_tells_what_was_heard(captioner):
    def for_ever():
        while True:
            yield np.full(1600, 0.1, np.float32) * np.float32([1, -1] * 800)
            time.sleep(0.01)

    heard = listener(captioner, for_ever)
    threading.Timer(0.5, heard.stop).start()
    began = time.monotonic()
    assert list(heard)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("source", ["dog.wav", "ftp://host/x", "file:///etc/passwd", "http:", "", "rtsp://"])
def test_what_is_no_stream_is_refused(source):
    with pytest.raises(SourceError, match="is not a stream"):
        opener(source, RATE, 1.0, sys.stdin.buffer)


def test_a_playlist_does_not_open_a_file_of_this_machine(tmp_path):
    soundfile.write(tmp_path / "private.wav", sound(), RATE)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{tmp_path}/private.wav\n#EXT-X-ENDLIST\n"
    with server(playlist.encode(), playlist.encode()) as address, pytest.raises(StreamError):
        list(opener(address, RATE, 2.0, sys.stdin.buffer)())


@pytest.mark.parametrize(
    "script",
    [
        "ffconcat version 1.0\nfile private.wav\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nprivate.wav\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 50040 RTP/AVP 0\n",
    ],
    ids=["ffconcat", "playlist", "sdp"],
)
def test_what_is_piped_opens_no_file_and_no_address(tmp_path, monkeypatch, script):
    monkeypatch.chdir(tmp_path)
    soundfile.write("private.wav", sound(), RATE)
    with pytest.raises(StreamError, match="pipe a whole file or stream"):
        list(opener("-", RATE, 2.0, io.BytesIO(script.encode()))())


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_what_is_piped_may_be_in_any_usual_format(format):
    x = sound()
    heard = np.concatenate(list(opener("-", RATE, 2.0, io.BytesIO(encoded(x, format)))()))
    assert len(heard) == pytest.approx(len(x), abs=0.1 * RATE)
    assert np.square(heard).mean() == pytest.approx(np.square(x).mean(), rel=0.2)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("rtsp://me:pw@cam:554/s?x=1#f", "rtsp://cam:554/s"),
        ("http://h/live", "http://h/live"),
        ("mic", "mic"),
        ("-", "-"),
    ],
)
def test_an_address_is_told_without_its_secrets(address, name):
    assert told(address) == name


def test_nothing_secret_is_told_of_an_address_that_cannot_be_reached():
    address = f"http://user:{SECRET}@127.0.0.1:9/x?token={SECRET}"
    with pytest.raises(StreamError) as caught:
        next(opener(address, RATE, 1.0, sys.stdin.buffer)())
    assert SECRET not in str(caught.value)
    assert "127.0.0.1:9/x" in str(caught.value)


def test_a_clip_is_kept_whole_under_a_name_that_says_what_it_is(tmp_path):
    from datetime import datetime

    path = save(tmp_path, datetime(2026, 11, 26, 8, 1, 2, 345_000), "A dog/../barks!", sound(), RATE)
    assert path.name == "2026-11-26T08-01-02.345_a-dog-barks.flac"
    assert soundfile.info(path).frames == len(sound())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def command(*args, model, stdin=None, **popen):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "lamb", "listen", *args, "--model", str(model)]
    return subprocess.Popen(
        line, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **popen
    )


def test_the_command_prints_a_line_an_event_and_keeps_its_sound(model_folder, tmp_path):
    soundfile.write(tmp_path / "x.wav", sound(), RATE)
    with (tmp_path / "x.wav").open("rb") as file:
        process = command("-", "--save", str(tmp_path / "kept"), model=model_folder, stdin=file)
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    [event] = map(json.loads, out.splitlines())
    assert {"time", "start", "end", "caption", "confidence", "clip"} == event.keys()
    assert soundfile.info(event["clip"]).duration == pytest.approx(event["end"] - event["start"], abs=0.01)


def test_the_command_ends_cleanly(model_folder):
    process = command("-", model=model_folder, stdin=subprocess.PIPE)
    assert process.stdin is not None
    raw = process.stdin.buffer
    raw.write(encoded(np.tile(sound(), 30), "WAV")[: 40 * RATE])
    raw.flush()
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["caption"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=200) == 0


def test_raw_samples_are_no_stream():
    with pytest.raises(StreamError, match=r"cannot be opened .*; pipe a whole file or stream, such as WAV or FLAC"):
        list(opener("-", RATE, 2.0, io.BytesIO(b"\x01\x02" * 5000))())


def test_the_command_tells_what_is_wrong_and_no_secret(model_folder):
    process = command(f"rtsp://user:{SECRET}@127.0.0.1:9/x", "--retries", "0", model=model_folder)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "rtsp://127.0.0.1:9/x: cannot be opened" in err
    assert SECRET not in err
    assert len(err.strip().splitlines()) == 1


def test_pacing_keeps_a_recording_behind_an_address_from_running_ahead(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(sources.time, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(sources.time, "sleep", slept.append)
    list(sources._paced(iter([np.zeros(RATE, np.float32)] * 20), RATE))
    assert sum(slept) == pytest.approx(20 - sources.AHEAD)
