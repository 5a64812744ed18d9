"""The service as its clients see it: captions as the command line's, both APIs, limits, keys, overload, goodbye."""

import asyncio
import gc
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import numpy as np
import openai
import pytest
import schemathesis
import soundfile
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served import FILES, SAMPLES, Held, Served, running, tiny, until
from typer.testing import CliRunner

from lamb.audio import sandbox
from lamb.audio.reader import AudioError
from lamb.cli.app import app as command_line
from lamb.inference.captions import WRITERS, Caption
from lamb.serving.gate import JsonLines, log_to_stderr
from lamb.serving.schema import EXAMPLE, CaptionJSON
from lamb.serving.server import KEYS, model_name, read_keys
from lamb.serving.service import Gone, while_there

ROOT = Path(__file__).parents[2]
SIREN, LONG = SAMPLES / "siren.flac", SAMPLES / "horn_then_rain.flac"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with running(batches=2, max_size=3, max_duration=30, max_channels=2, max_rate=48_000) as it:
        yield it


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=120) as it:
        yield it


@pytest.fixture
def held() -> Held:
    return Held(tiny())


def post(
    client: httpx.Client | Served, file: Path | bytes = SIREN, /, name: str | None = None, **fields: Any
) -> httpx.Response:
    """A sound to /v1/caption, with a form's fields as options."""
    content = file if isinstance(file, bytes) else file.read_bytes()
    name = name or (file.name if isinstance(file, Path) else "sound")
    if isinstance(client, Served):
        return httpx.post(f"{client.url}/v1/caption", files={"file": (name, content)}, data=fields, timeout=120)
    return client.post("/v1/caption", files={"file": (name, content)}, data=fields)


def alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal, numbers within 1e-3: batches of other lengths change the last digits."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, float):
            assert value == pytest.approx(other[key], abs=1e-3), key
        elif isinstance(value, list) and value and isinstance(value[0], dict | float):
            assert len(value) == len(other[key])
            for a, b in zip(value, other[key], strict=True):
                alike({"it": a} if isinstance(a, float) else a, {"it": b} if isinstance(b, float) else b)
        else:
            assert value == other[key], key


def expected(file: Path, **options: Any) -> Caption:
    from dataclasses import replace

    return replace(tiny().caption([file], **options)[0], file=file.name)


# --- captions


def test_captions_of_many_clients_are_the_command_lines(served, monkeypatch):
    monkeypatch.chdir(SAMPLES)
    said = CliRunner().invoke(command_line, ["caption", *[file.name for file in FILES], "--format", "jsonl"])
    wanted = {(one := json.loads(line))["file"]: one for line in said.stdout.splitlines()}
    before = served.service.metrics.batch._sum.get(), sum(b.get() for b in served.service.metrics.batch._buckets)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda file: post(served, file), FILES * 2))
    assert len(wanted) == len(FILES)
    for file, answer in zip(FILES * 2, answers, strict=True):
        assert answer.status_code == 200
        alike(answer.json(), wanted[file.name])
    clips = served.service.metrics.batch._sum.get() - before[0]
    batches = sum(b.get() for b in served.service.metrics.batch._buckets) - before[1]
    assert clips == len(answers)
    assert batches < clips, "some were captioned together; how many depends on how busy the machine is"


@pytest.mark.parametrize(
    "options",
    [
        {"n_best": 3},
        {"beams": 1},
        {"sample": True, "seed": 7, "n_best": 2},
        {"timeline": True, "window": 3},
        {"timeline": True, "window": 3, "hop": 1.5},
    ],
    ids=str,
)
def test_options_are_the_command_lines(client, options):
    wanted = expected(LONG, **options).to_dict()
    alike(post(client, LONG, **options).json(), wanted)
    raw = client.post("/v1/caption", content=LONG.read_bytes(), params=options)
    alike(raw.json(), {**wanted, "file": "-"})


@pytest.mark.parametrize("format", sorted(WRITERS))
def test_formats_are_the_command_lines(client, format):
    answer = post(client, LONG, timeline=True, window=3, format=format)
    wanted = [expected(LONG, timeline=True, window=3)]
    if "json" in format:
        alike(answer.json(), wanted[0].to_dict())
    else:
        same = lambda text: [
            line[:40] for line in text.splitlines()
        ]  # confidences of a csv may differ in the last digit
        assert same(answer.text) == same("".join(WRITERS[format](wanted)))
    assert answer.headers["content-type"].split(";")[0].split("/")[0] in ("text", "application")


def test_a_long_recording_comes_segment_by_segment(client):
    wanted = [segment.to_dict() for segment in expected(LONG, timeline=True, window=2).segments]
    assert len(wanted) > 1
    asked = (
        {"files": {"file": ("a.flac", LONG.read_bytes())}, "data": {"stream": True, "window": 2}},
        {"content": LONG.read_bytes(), "params": {"window": 2}, "headers": {"accept": "text/event-stream"}},
    )
    for request in asked:
        with client.stream("POST", "/v1/caption", **request) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            text = "".join(answer.iter_text())
        events = [block.split("\n") for block in text.strip().split("\n\n")]
        kinds, data = zip(*[(kind, json.loads(line.removeprefix("data: "))) for kind, line in events], strict=True)
        assert kinds == (*["event: segment"] * len(wanted), "event: done")
        for one, other in zip(data[:-1], wanted, strict=True):
            alike(one, other)
        assert data[-1] == {"file": data[-1]["file"], "duration": 6.5, "segments": len(wanted)}


def test_a_stream_has_no_search_options(client):
    answer = post(client, stream=True, beams=2, n_best=2)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("beams, n_best: not for streamed segments")


def test_a_failure_of_ours_is_told_and_logged(caplog):
    class Broken(Held):
        def caption(self, files: Any, **options: Any) -> Any:
            raise RuntimeError("no")

    logging.getLogger("lamb.serve").propagate = True
    with caplog.at_level(logging.INFO, "lamb.serve"), running(Broken(tiny())) as it:
        answer = post(it)
        streamed = post(it, stream=True)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "event: error" in streamed.text
    failed = [record for record in caplog.records if record.message == "failed"]
    assert [record.fields["request_id"] for record in failed] == [a.headers["x-request-id"] for a in (answer, streamed)]


# --- the OpenAI audio API, with its own client


@pytest.fixture(scope="module")
def outside(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)


def test_the_openai_client_gets_captions(outside):
    wanted = expected(LONG, timeline=True)
    ask = lambda kind: outside.audio.transcriptions.create(file=LONG, model="tiny", response_format=kind)
    assert ask("json").text == wanted.text
    assert ask("text") == wanted.text + "\n"
    assert ask("srt") == "".join(WRITERS["srt"]([wanted]))
    assert ask("vtt") == "".join(WRITERS["vtt"]([wanted]))
    verbose = ask("verbose_json")
    assert (verbose.text, verbose.duration) == (wanted.text, wanted.duration)
    assert [(s.start, s.end, s.text) for s in verbose.segments] == [
        (s.start, s.end, s.caption) for s in wanted.segments
    ]
    assert type(verbose).model_validate(verbose.model_dump(), strict=True), "every field that its type asks for"


def test_the_openai_client_streams(outside):
    with outside.audio.transcriptions.create(file=LONG, model="tiny", stream=True, language="en") as stream:
        events = list(stream)
    assert [event.type for event in events] == ["transcript.text.delta"] * (len(events) - 1) + ["transcript.text.done"]
    assert events[-1].text == "".join(event.delta for event in events[:-1])
    assert events[-1].text == " ".join(segment.caption for segment in expected(LONG, timeline=True).segments)


def test_any_name_of_a_model_is_answered_by_the_one_that_is_loaded(outside):
    answer = outside.audio.transcriptions.with_raw_response.create(file=LONG, model="whisper-1")
    assert answer.headers["x-lamb-model"] == "tiny"
    assert outside.audio.translations.create(file=LONG, model="whisper-1").text == answer.parse().text
    with outside.audio.transcriptions.create(file=LONG, model="whisper-1", stream=True) as stream:
        assert stream.response.headers["x-lamb-model"] == "tiny"
        assert list(stream)


def test_a_model_in_any_alphabet_is_named_in_the_header():
    with running(model="модель (50 %), org/one") as it:
        address, file = f"{it.url}/v1/audio/transcriptions", {"file": ("siren.flac", SIREN.read_bytes())}
        answer = httpx.post(address, files=file, timeout=120)
    assert answer.status_code == 200
    named = answer.headers["x-lamb-model"]
    assert unquote(named) == "модель (50 %), org/one"
    assert named.endswith("%20(50%20%25),%20org/one")


def test_the_openai_client_is_told_what_is_wrong(outside):
    assert [model.id for model in outside.models.list()] == ["tiny"]
    assert outside.models.retrieve("tiny").owned_by == "lamb"
    ask = outside.audio.transcriptions.create
    with pytest.raises(openai.UnprocessableEntityError, match=r"README\.md: not audio") as told:
        ask(file=SAMPLES / "README.md", model="tiny")
    assert told.value.code == "unreadable_audio"
    with pytest.raises(openai.APIStatusError, match="larger than the 3 MB"):
        ask(file=("big.wav", bytes(10**7)), model="tiny")


# --- limits


def wav(folder: Path, seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> Path:
    """Noise as a wav file, or a flac file where it is long."""
    path = folder / ("sound.flac" if seconds > 10 else "sound.wav")
    x = np.zeros((round(seconds * rate), channels), np.float32)
    x[:rate] = np.random.default_rng(0).uniform(-0.1, 0.1, (min(len(x), rate), channels))
    soundfile.write(path, x, rate)
    return path


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        ({"seconds": 31}, "longer than the 30 s allowed here"),
        ({"seconds": 0.05}, "lasts 0.050 s, shorter than 0.1 s"),
        ({"channels": 3}, "3 channels, more than the 2 allowed here"),
        ({"rate": 96_000}, "96000 Hz, more than the 48000 allowed here"),
    ],
    ids=str,
)
def test_limits_of_a_sound(client, tmp_path, sound, message):
    answer = post(client, wav(tmp_path, **sound))
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "unreadable_audio"


@pytest.mark.parametrize("stated", [True, False])
def test_limit_of_an_upload(client, stated):
    """Told before it is read where the length is stated; and the client, which sends on, comes to read it."""
    content = bytes(4 * 10**6)
    answer = client.post("/v1/caption", content=content if stated else iter([content[: 10**6]] * 4))
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "larger than the 3 MB of this service"


def test_limit_of_an_uploads_time():
    with running(upload_timeout=0.3) as it, socket.create_connection(("127.0.0.1", it.port)) as slow:
        slow.sendall(b"POST /v1/caption HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
        slow.settimeout(20)
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
        until(lambda: it.service.taken == 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_best": 0}, "n_best: Input should be greater than or equal to 1"),
        ({"beams": 10**6}, "beams: Input should be less than or equal to 16"),
        ({"n_best": 3, "beams": 2}, "n_best 3 needs as many beams, not 2; raise beams, or sample"),
        ({"window": "nan"}, "window: Input should be"),
        ({"window": 2, "hop": 3}, "hop at most the window"),
        ({"window": 60, "hop": 0.5}, "hop 0.5 s is less than a quarter of the window of 60 s; choose 15 s or more"),
        ({"hop": 2}, "hop 2 s is less than a quarter of the window of 10 s; choose 2.5 s or more"),
        ({"beam": 2}, "beam: Extra inputs are not permitted"),
        ({"format": "xml"}, "format: Input should be 'json'"),
    ],
    ids=str,
)
def test_options_out_of_bounds(client, fields, message):
    answers = [post(client, **fields), client.post("/v1/caption", content=SIREN.read_bytes(), params=fields)]
    for answer in answers:
        assert answer.status_code == 422
        assert message in answer.json()["error"]["message"]


# --- many clients


def test_more_than_the_queue_holds(held):
    with running(held, queue=3) as it, ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(post, it) for _ in range(3)]
        until(lambda: it.service.taken == 3)
        refused = post(it)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "server_error"
        held.go.set()
        assert [one.result().status_code for one in taken] == [200] * 3
        assert post(it).status_code == 200


def test_the_work_of_a_client_that_is_gone_is_dropped(held):
    with running(held, batch_size=2, batch_wait=0) as it, ThreadPoolExecutor(1) as pool:
        content = SIREN.read_bytes()
        first = pool.submit(post, it)  # holds the model
        until(lambda: it.service.metrics.batch._sum.get() == 1)
        leaving = [socket.create_connection(("127.0.0.1", it.port)) for _ in range(3)]
        for one in leaving:
            one.sendall(b"POST /v1/caption HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        until(lambda: len(it.service.batcher._jobs) == 3)
        for one in leaving:
            one.close()
        until(lambda: it.service.taken == 1)
        held.go.set()
        assert first.result().status_code == 200
        assert post(it).status_code == 200
        assert held.batches == [1, 1], "the model saw the first and the last"
        assert 'status="499"' in httpx.get(f"{it.url}/metrics").text


def test_a_client_that_leaves_a_stream(held):
    with running(held) as it:
        request = {"content": SIREN.read_bytes(), "params": {"stream": True}}
        with httpx.stream("POST", f"{it.url}/v1/caption", **request) as answer:
            assert answer.status_code == 200
        until(lambda: it.service.taken == 0)
        held.go.set()
        assert post(it).status_code == 200


def test_what_goes_wrong_once_the_client_is_gone_is_not_told(caplog):
    """Nobody asks for it any longer: it must not reach asyncio's log either, a file's name and all."""

    class Left:
        async def receive(self) -> dict[str, str]:
            return {"type": "http.disconnect"}

    async def decode() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise AudioError("my holiday.flac", "not decoded in time", "give a shorter file") from None

    async def ask() -> None:
        with pytest.raises(Gone):
            await while_there(Left(), decode())  # type: ignore[arg-type]
        gc.collect()

    asyncio.run(ask())
    assert "holiday" not in caplog.text


# --- keys, ids, logs


def test_keys(tmp_path, monkeypatch):
    monkeypatch.setenv(KEYS, "first-key-of-16-chars, second-key-of-16-chars")
    file = tmp_path / "keys"
    file.write_text("# clients\nthird-key-of-16-chars  # anna\n\n")
    keys = read_keys(file)
    assert keys == ["first-key-of-16-chars", "second-key-of-16-chars", "third-key-of-16-chars"]
    with running(keys=keys) as it, httpx.Client(base_url=it.url, timeout=120) as client:
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": keys[0]}, {"x-api-key": keys[0]}):
            client.headers = httpx.Headers(given)
            for answer in (post(client), client.get("/v1/models"), client.post("/v1/audio/transcriptions")):
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
            assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200
        for key in keys:
            client.headers = httpx.Headers({"authorization": f"Bearer {key}"})
            assert post(client).status_code == client.get("/v1/models").status_code == 200
        outside = openai.OpenAI(base_url=f"{it.url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="no valid key"):
            outside.models.list()


def test_keys_that_protect_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv(KEYS, raising=False)
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    with pytest.raises(ValueError, match=r"keys: holds no key; write one per line"):
        read_keys(file)
    file.write_text("secret\n")
    with pytest.raises(ValueError, match="1 of the API keys have fewer than 16 characters") as told:
        read_keys(file)
    assert "secret" not in str(told.value)
    assert read_keys(None) == []


def test_a_models_name_tells_no_folders(tmp_path):
    (tmp_path / "mine").mkdir()
    assert model_name(str(tmp_path / "mine")) == "mine"
    assert model_name("tiny") == "tiny"
    assert model_name("people/model") == "people/model"


def test_ids_go_in_and_out(client):
    assert client.get("/healthz", headers={"x-request-id": "a.b-1"}).headers["x-request-id"] == "a.b-1"
    made = [
        client.get("/nothing", headers={"x-request-id": given}).headers["x-request-id"] for given in ("a b", "a" * 65)
    ]
    assert all(len(one) == 32 for one in made)
    assert len(set(made)) == 2


def test_logs_are_json_without_contents(caplog):
    logging.getLogger("lamb.serve").propagate = True
    with (
        caplog.at_level(logging.INFO, "lamb.serve"),
        running(keys=[KEY]) as it,
        httpx.Client(base_url=it.url, headers={"authorization": f"Bearer {KEY}", "x-request-id": "mine"}) as client,
    ):
        text = post(client, name="../../my holiday.flac").json()["caption"]
        until(lambda: any(getattr(r, "fields", {}).get("route") == "/v1/caption" for r in caplog.records))
        client.get("/secret-path?token=secret-query")
        client.request("SECRET-METHOD", "/healthz")
    lines = [JsonLines().format(record) for record in caplog.records if record.name == "lamb.serve"]
    logged = [line for line in map(json.loads, lines) if line["event"] == "request" and line["request_id"] == "mine"]
    first = {"event": "request", "level": "info", "request_id": "mine", "route": "/v1/caption", "status": 200}
    assert first.items() <= logged[0].items()
    assert logged[0]["audio_seconds"] == 6.0
    assert logged[0]["bytes"] > SIREN.stat().st_size
    assert (logged[1]["route"], logged[1]["status"]) == ("none", 404)
    assert (logged[2]["method"], logged[2]["status"]) == ("other", 405)
    for content in (KEY, text, "holiday", "secret"):
        assert content not in "".join(lines).lower()


def test_a_hostile_name_of_a_repaired_sound_is_neither_logged_nor_kept(tmp_path, capsys):
    x = np.sin(np.arange(16_000) / 5).astype(np.float32)
    x[5000] = np.nan
    soundfile.write(tmp_path / "repaired.wav", x, 16_000, "FLOAT")
    forged = 'holiday\n{"level": "error", "event": "forged"}\n'
    names = ("lamb.serve", "uvicorn", "py.warnings")
    before = {name: (one.handlers, one.propagate, one.level) for name in names if (one := logging.getLogger(name))}
    try:
        with warnings.catch_warnings():
            log_to_stderr()
            with sandbox.Decoding(tmp_path / "repaired.wav", 16_000, called=forged) as decoding:
                assert len(decoding.load(60)) == 16_000
            warnings.warn("of a library,\nin two lines", stacklevel=1)
    finally:
        logging.captureWarnings(False)
        for name, state in before.items():
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate, logger.level = state
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["level"] == "warning"
    assert "UserWarning: of a library,\nin two lines" in json.loads(line)["event"]
    assert "holiday" not in str(getattr(sandbox, "__warningregistry__", {}))


def test_health_and_metrics(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    post(client)
    until(lambda: 'route="/v1/caption",status="200"' in client.get("/metrics").text)  # counted once it is answered
    until(lambda: "lamb_requests_taken 0.0" in client.get("/metrics").text)
    text = client.get("/metrics").text
    assert 'lamb_requests_total{route="/v1/caption",status="200"}' in text
    for name in (
        "lamb_request_seconds_bucket",
        "lamb_batch_clips_sum",
        "lamb_audio_seconds_total",
        "lamb_requests_taken 0.0",
    ):
        assert name in text


# --- the description


DESCRIBED = [
    ("GET", "/healthz", "positive"),
    ("GET", "/metrics", "positive"),
    ("GET", "/readyz", "positive"),
    ("GET", "/v1/models", "positive"),
    ("GET", "/v1/models/{name}", "positive"),
    ("POST", "/v1/audio/transcriptions", "positive"),
    ("POST", "/v1/audio/transcriptions", "negative"),
    ("POST", "/v1/caption", "positive"),
    ("POST", "/v1/caption", "negative"),
]
KEY = "a-key-of-16-characters"


@pytest.fixture(scope="module")
def description() -> Iterator[Any]:
    with running(keys=[KEY]) as it:
        yield schemathesis.openapi.from_url(f"{it.url}/openapi.json")


def test_all_paths_are_described(description):
    assert set(description) == {path for _, path, _ in DESCRIBED}


@pytest.mark.parametrize(("method", "path", "mode"), DESCRIBED)
def test_the_service_is_what_its_description_says(description, method, path, mode):
    """Requests that the description allows, or does not: status, type and schema of the answer; keys; no 5xx."""
    no_sound = [positive_data_acceptance] if method == "POST" else []  # no schema can tell which bytes are a sound

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(case=description[path][method].as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(timeout=120, headers={"Authorization": f"Bearer {KEY}"}, excluded_checks=no_sound)

    ask()


def test_a_caption_is_described_with_all_its_fields(full_caption):
    given = full_caption.to_dict()
    assert given.keys() == CaptionJSON.model_fields.keys()
    assert CaptionJSON(**given).model_dump(mode="json") == given
    CaptionJSON(**EXAMPLE)


def test_the_page_has_examples(client):
    said = client.get("/openapi.json").json()
    assert said["components"]["schemas"]["CaptionJSON"]["example"]["caption"]
    form = said["paths"]["/v1/caption"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"file", "n_best", "beams", "sample", "seed", "timeline", "window", "hop", "format"} <= set(
        form["properties"]
    )


def test_the_page_of_the_interface_needs_no_network(client):
    text = client.get("/", follow_redirects=True).text
    for word in ("POST /v1/caption", "n_best", "curl -F file=@siren.flac", "GET /healthz"):
        assert word in text
    assert not re.findall(r'(?:src|href)="(?!openapi.json")', text)
    assert not re.findall(r"<script|@import|url\(", text)


def test_health_is_told_to_head_too(client):
    for path in ("/healthz", "/readyz"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


# --- pages of other origins


def preflight(client: httpx.Client, origin: str) -> httpx.Response:
    """What a browser asks before it lets a page of `origin` send a file with a key."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    return client.options("/v1/audio/transcriptions", headers={"Origin": origin, **asked})


def test_no_other_page_may_use_the_service_unless_it_is_named(client):
    asked = preflight(client, "https://a.example")
    assert asked.status_code == 405
    for answer in (asked, client.get("/v1/models", headers={"Origin": "https://a.example"})):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_page_that_is_named_may_use_the_service():
    key = "k" * 24
    with (
        running(cors="https://a.example, https://b.example", keys=[key]) as served,
        httpx.Client(base_url=served.url) as client,
    ):
        for origin, named in (("https://a.example", True), ("https://b.example", True), ("https://c.example", False)):
            answer = preflight(client, origin)
            assert answer.status_code == (200 if named else 400), "before any key is shown"
            assert answer.headers.get("access-control-allow-origin") == (origin if named else None)
            # what is refused can be read by the page too
            for headers, status in (({"Authorization": f"Bearer {key}"}, 200), ({}, 401)):
                answer = client.get("/v1/models", headers={"Origin": origin, **headers})
                assert answer.status_code == status
                assert answer.headers.get("access-control-allow-origin") == (origin if named else None)
        exposed = client.get("/v1/models", headers={"Origin": "https://a.example"}).headers
        assert {"x-lamb-model", "x-request-id"} <= set(exposed["access-control-expose-headers"].split(", "))


def test_any_page_may_use_a_service_that_says_so():
    with running(cors="*") as served, httpx.Client(base_url=served.url) as client:
        answer = client.get("/healthz", headers={"Origin": "https://c.example"})
        assert answer.headers["access-control-allow-origin"] == "*"


# --- the command


def test_what_was_taken_is_finished_on_sigterm():
    """The real command, with a request on its way when it is told to end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lamb", "serve", "--port", "0", "--batch-wait", "1.5", "--decoders", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        first = json.loads(process.stderr.readline())
        assert (first["event"], first["model"]) == ("listening", "tiny")
        assert first["url"].startswith("http://127.0.0.1:")
        answers: list[httpx.Response] = []
        ask = lambda: answers.append(httpx.post(f"{first['url']}/v1/caption", content=SIREN.read_bytes(), timeout=120))
        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: "lamb_requests_taken 1.0" in httpx.get(f"{first['url']}/metrics", timeout=60).text)
        process.send_signal(signal.SIGTERM)
        asking.join(60)
        rest = [json.loads(line) for line in process.stderr]
        assert process.wait(30) == 0
    assert answers[0].json()["caption"] == expected(SIREN).text
    assert rest[-1]["event"] == "ended"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{first['url']}/healthz")


def test_mistakes_of_the_command(tmp_path):
    command = [sys.executable, "-m", "lamb", "serve", "--keys", str(tmp_path / "none")]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 1
    assert said.stderr.startswith("lamb: error: ")
    assert "No such file" in said.stderr
    assert said.stderr.count("\n") == 1


# --- its document


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "serve.md").read_text(), re.DOTALL)


def test_the_documents_program(served, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (program,) = blocks("python")
    exec(program.replace("http://127.0.0.1:8000", served.url), {})
    assert capsys.readouterr().out == expected(SIREN).text + "\n"


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not here")
def test_the_documents_requests(served):
    lines = [
        line for block in blocks("bash") for line in block.splitlines() if line.startswith("curl") and "$" not in line
    ]
    assert len(lines) == 4
    for line in lines:
        command = line.replace("http://127.0.0.1:8000", served.url)
        said = subprocess.run(["bash", "-c", f"{command} --fail -sS"], cwd=ROOT, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        assert "siren" in said.stdout or "horn" in said.stdout, line
