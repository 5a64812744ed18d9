"""The middleware around every request: its id, the limit on its size, metrics and one line of log.

Nothing that a client sent is logged or used as the label of a metric: no file name, caption, key, address or path. The
exceptions are the route, numbers, and a request id that consists of plain characters.
"""

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
import warnings
from datetime import UTC, datetime
from typing import Any

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lamb.audio.errors import AudioWarning
from lamb.config import ServeConfig

ENVELOPE = 65_536  # bytes of a request besides the file: the lines and fields of the form
LINGER = 5.0  # seconds for which the rest of a refused upload is read, so that its client reads the answer
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")  # others are inventions of a client
GONE = 499  # status in log and metrics if the client did not wait for the answer

log = logging.getLogger("lamb.serve")


class Metrics:
    """The metrics at `/metrics`."""

    def __init__(self) -> None:
        self.registry = one = CollectorRegistry()
        route = ["route"]
        times = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        clips = (1, 2, 4, 8, 16, 32, 64)
        self.requests = Counter("lamb_requests", "Answers, by route and status", [*route, "status"], registry=one)
        self.seconds = Histogram("lamb_request_seconds", "How long a request took", route, buckets=times, registry=one)
        self.taken = Gauge("lamb_requests_taken", "Sounds that are received, decoded, captioned or wait", registry=one)
        self.batch = Histogram("lamb_batch_clips", "Sounds captioned together", buckets=clips, registry=one)
        self.audio = Counter("lamb_audio_seconds", "Seconds of sound decoded", registry=one)
        self.deaths = Counter("lamb_decoders_ended", "Decoders that died or were ended", ["reason"], registry=one)


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: ServeConfig, metrics: Metrics):
        self.app, self.metrics = app, metrics
        self.most = int(settings.max_size * 1e6) + ENVELOPE
        self.too_large = HTTPException(413, f"larger than the {settings.max_size:g} MB of this service")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex
        began, status, received, whole = time.perf_counter(), GONE, 0, False

        async def take() -> Message:
            nonlocal received, whole
            message = await receive()
            received += len(message.get("body", b""))
            whole = whole or not message.get("more_body", False)
            return message

        async def limited() -> Message:
            length = headers.get("content-length", "0")
            if (length.isdecimal() and int(length) > self.most) or received > self.most:
                raise self.too_large
            message = await take()
            if received > self.most:
                raise self.too_large
            return message

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if not whole and message["status"] not in (200, 408) and "expect" not in headers:
                    await _linger(take, lambda: whole or received > 2 * self.most)
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        method = scope["method"] if scope["method"] in METHODS else "other"
        fields: dict[str, Any] = {"request_id": request_id, "method": method}
        scope["log"] = fields  # the service adds further fields
        try:
            await self.app(scope, limited, answer)
        except Exception:  # Starlette has answered it with 500
            log.exception("failed", extra={"fields": {"request_id": request_id}})
        finally:
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.perf_counter() - began
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            fields |= {"route": route, "status": status, "seconds": round(seconds, 4), "bytes": received}
            log.info("request", extra={"fields": fields})


async def _linger(take: Receive, enough: Any) -> None:
    """Read on for a while: closing the connection of a client that still sends would also lose the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while not enough():
                await take()


class JsonLines(logging.Formatter):
    """A JSON object per line: time, level, event, and the fields given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """`record` as one line."""
        now = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr() -> None:
    """Log lines of the service and of uvicorn, and warnings, as JSON on standard error.

    Warnings about sound are left out: they hold the name that a client gave to its file.
    """
    # Python also keeps the text of each warning that it shows, so that every name would take memory
    warnings.filterwarnings("ignore", category=AudioWarning)
    logging.captureWarnings(True)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name, level in (("lamb.serve", logging.INFO), ("uvicorn", logging.WARNING), ("py.warnings", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
