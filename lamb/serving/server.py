"""`lamb serve`: captions over HTTP, in the command line's JSON and in the shape of the OpenAI audio API.

A request passes the gate (id, size, log), shows its key if keys are required, and is accepted if the queue has room. It
is received, decoded in a worker process, captioned together with others, and answered with a result, with a reason and
a remedy (4xx), or with 503 and Retry-After. If its client leaves, the rest of this is dropped.
"""

import gc
import hashlib
import hmac
import json
import logging
import os
import re
import signal
import socket
import string
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import numpy as np
import prometheus_client
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from lamb import __version__
from lamb.audio.reader import AudioError
from lamb.errors import LambError, OptionError
from lamb.inference.captions import WRITERS
from lamb.serving import schema
from lamb.serving.docs import page
from lamb.serving.gate import GONE, Gate, log_to_stderr
from lamb.serving.schema import EVENTS, MEDIA, CaptionOptions, TranscriptionOptions
from lamb.serving.service import Gone, Service, while_there

M = TypeVar("M", bound=BaseModel)
KEYS = "LAMB_API_KEYS"  # environment variable: API keys, separated by white space or commas
PROBLEMS = (400, 401, 408, 413, 422, 503)  # statuses of a request with a sound that fails

MODEL = "x-lamb-model"
OURS = "an error of ours; the log has it under the id of the request"

log = logging.getLogger("lamb.serve")


def _checked(model: type[M], values: Mapping[str, Any]) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _event(data: Mapping[str, Any], kind: str | None = None) -> str:
    return (f"event: {kind}\n" if kind else "") + f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _streamed(events: AsyncIterator[str], request: Request, headers: Mapping[str, str] | None = None) -> Response:
    """Server-sent events; if they break off, the last one is an error."""

    async def whole() -> AsyncIterator[str]:
        try:
            async for event in events:
                yield event
        except Exception:
            log.exception("failed", extra={"fields": {"request_id": request.scope["log"]["request_id"]}})
            yield _event({"error": {"message": OURS, "type": "server_error"}}, "error")

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
    return StreamingResponse(whole(), media_type=EVENTS, headers=headers)


def _add_caption(router: APIRouter, service: Service) -> None:
    @router.post(
        "/v1/caption",
        responses=schema.responses(schema.CaptionJSON, [*MEDIA.values(), EVENTS][1:], *PROBLEMS),
        openapi_extra=schema.form(CaptionOptions, raw=True),
    )
    async def caption(
        request: Request,
        query: Annotated[CaptionOptions, Query()],
        held: Annotated[AsyncExitStack, Depends(service.take)],
    ) -> Response:
        """Say what is heard in a sound: a form with the field `file`, or the file alone as the body.

        Options stand in the form or in the query:

            curl -F file=@siren.flac -F n_best=3 http://127.0.0.1:8000/v1/caption
            curl --data-binary @siren.flac 'http://127.0.0.1:8000/v1/caption?n_best=3'

        With `stream`, or `Accept: text/event-stream`, the timeline comes as events: `segment` for each, then `done`.
        """
        file, name, fields = await service.receive(request, held)
        options = _checked(CaptionOptions, {**query.model_dump(exclude_unset=True), **fields})
        keywords = options.model_dump(exclude={"format", "stream"})
        try:
            options.check(service.captioner.options)
            service.captioner.stream((), **keywords)  # to check the options
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        if not (options.stream or EVENTS in request.headers.get("accept", "")):
            result = await service.caption(file, name, tuple(keywords.items()), request, held)
            if options.format == "json":
                return JSONResponse(result.to_dict())
            return Response("".join(WRITERS[options.format]([result])), media_type=MEDIA[options.format])

        if foreign := options.model_fields_set & {"n_best", "beams", "sample", "seed", "format"}:
            raise HTTPException(422, f"{', '.join(sorted(foreign))}: not for streamed segments; leave it out")
        sound = await while_there(request, service.decode(file, name, request, held))

        async def events() -> AsyncIterator[str]:
            count = 0
            async for segment in service.batcher.segments(sound, options.window, options.hop):
                yield _event(segment.to_dict(), "segment")
                count += 1
            duration = round(len(sound) / service.batcher.sample_rate, 3)
            yield _event({"file": name, "duration": duration, "segments": count}, "done")

        return _streamed(events(), request)


def _add_openai(router: APIRouter, service: Service) -> None:
    model = schema.Model(id=service.model, created=int(time.time()))

    @router.get("/v1/models", responses=schema.responses(schema.Models, [], 401))
    async def models() -> Response:
        """The model that is loaded."""
        return JSONResponse(schema.Models(data=[model]).model_dump())

    @router.get("/v1/models/{name:path}", responses=schema.responses(schema.Model, [], 401, 404))
    async def one(name: str) -> Response:
        """The same, by its name."""
        if name != model.id:
            raise HTTPException(404, f"no such model; there is {model.id}")
        return JSONResponse(model.model_dump())

    @router.post("/v1/audio/translations", include_in_schema=False)  # the captions are in English anyway
    @router.post(
        "/v1/audio/transcriptions",
        responses=schema.responses(
            schema.Transcription | schema.VerboseTranscription,
            [MEDIA["text"], MEDIA["srt"], MEDIA["vtt"], EVENTS],
            *PROBLEMS,
        ),
        openapi_extra=schema.form(TranscriptionOptions),
    )
    async def transcribe(request: Request, held: Annotated[AsyncExitStack, Depends(service.take)]) -> Response:
        """The same in the shape of the OpenAI audio API: captions stand where a transcript would.

        Any name of a model is taken; the header `X-Lamb-Model` has the one that answers, percent-encoded.
        With `stream`, segments come as `transcript.text.delta` events, then all of them as `transcript.text.done`.
        """
        file, name, fields = await service.receive(request, held)
        options = _checked(TranscriptionOptions, fields)
        named = {MODEL: in_header(model.id)}  # clients ask for OpenAI's models, but the loaded one answers
        kind = options.response_format
        if not options.stream:
            timed = {"timeline": kind not in ("json", "text")}
            result = await service.caption(file, name, tuple(timed.items()), request, held)
            if kind == "json":
                return JSONResponse({"text": result.text}, headers=named)
            if kind == "verbose_json":
                return JSONResponse(schema.VerboseTranscription.of(result).model_dump(), headers=named)
            return Response("".join(WRITERS[kind]([result])), media_type=MEDIA[kind], headers=named)
        sound = await while_there(request, service.decode(file, name, request, held))

        async def events() -> AsyncIterator[str]:
            text = ""
            async for segment in service.batcher.segments(sound, None, None):
                delta = f" {segment.caption}" if text else segment.caption
                text += delta
                yield _event({"type": "transcript.text.delta", "delta": delta})
            yield _event({"type": "transcript.text.done", "text": text})

        return _streamed(events(), request, named)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", response_model=dict[str, str])
    async def healthz() -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", responses=schema.responses(dict[str, str], [], 503))
    async def readyz() -> Response:
        """Whether a sound would be captioned; 503 if not."""
        if not service.ready:
            raise HTTPException(503, "not able to work; the log says why", {"Retry-After": "1"})
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(
            prometheus_client.generate_latest(service.metrics.registry),
            media_type=prometheus_client.CONTENT_TYPE_LATEST,
        )


def _add_docs(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(page(app.openapi()))


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(StarletteHTTPException)
    async def _(_request: Request, error: StarletteHTTPException) -> Response:
        return schema.problem(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def _(_request: Request, error: RequestValidationError) -> Response:
        said = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        return schema.problem(422, "; ".join(said)[:1000], "invalid_option")

    @app.exception_handler(AudioError)
    async def _(_request: Request, error: AudioError) -> Response:
        return schema.problem(422, str(error), "unreadable_audio")

    @app.exception_handler(Gone)
    async def _(_request: Request, _error: Gone) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(Exception)
    async def _(_request: Request, _error: Exception) -> Response:
        return schema.problem(500, OURS)


def create_app(service: Service, keys: Sequence[str] = ()) -> Gate:
    """The application; with `keys`, everything below /v1 requires one of them as a bearer token."""
    digests = [hashlib.sha256(key.encode()).digest() for key in keys]
    bearer = HTTPBearer(auto_error=False, description="An API key.")

    async def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        digest = hashlib.sha256((given.credentials if given else "").encode()).digest()
        matches = [hmac.compare_digest(digest, known) for known in digests]  # all, so that the time tells nothing
        if not any(matches):
            raise HTTPException(401, "no valid key; send Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})

    app = FastAPI(
        title="lamb",
        version=__version__,
        description="Says in a sentence what is heard in a recording.",
        lifespan=service.running,
        docs_url=None,  # our own page needs no network
        redoc_url=None,
    )
    if service.settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.strip() for origin in service.settings.cors.split(",")],
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[MODEL, "x-request-id"],
        )
    router = APIRouter(dependencies=[Depends(authorised)] if keys else [])
    _add_caption(router, service)
    _add_openai(router, service)
    app.include_router(router)
    _add_health(app, service)
    _add_docs(app)
    _add_problems(app)
    return Gate(app, service.settings, service.metrics)


def read_keys(file: Path | None) -> list[str]:
    """API keys of the environment variable LAMB_API_KEYS and of `file`, one per line. Raises OptionError, OSError."""
    text = os.environ.get(KEYS, "")
    if file is not None:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        text += " " + " ".join(line.partition("#")[0] for line in lines)
    keys = re.split(r"[\s,]+", text.strip()) if text.strip() else []
    if file is not None and not keys:
        raise OptionError(f"{file}: holds no key", "write one per line, such as the output of: openssl rand -hex 24")
    if short := [key for key in keys if len(key) < 16]:
        raise OptionError(
            f"{len(short)} of the API keys have fewer than 16 characters", "make one with: openssl rand -hex 24"
        )
    return keys


def in_header(text: str) -> str:
    """`text` for a header of HTTP, which takes only ASCII: readable ASCII as it is, other bytes of UTF-8 as %XX."""
    return quote(os.fsencode(text), safe=string.punctuation.replace("%", ""))


def model_name(model: str) -> str:
    """The name of the model for clients: its bundled or hub name, or the last part of the path of a folder."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def serve(service: Service, keys: Sequence[str] = ()) -> None:
    """Answer requests until SIGTERM or Ctrl-C, then finish the accepted ones. Raises OSError for a port in use."""
    settings = service.settings
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family, backlog=2048) as listening:
        log_to_stderr()
        service.captioner.engine.runtime.share(service.batcher.batches)
        rate = service.batcher.sample_rate
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, rate).astype(np.float32)
        service.captioner.caption([(noise, rate)])  # now loads everything that the first use would load
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(service, keys),
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=round(settings.drain),
            )
        )
        gc.collect()
        gc.freeze()  # later collections skip what exists now, which would take 0.15 s each time
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{host}:{listening.getsockname()[1]}"
        log.info("listening", extra={"fields": {"url": url, "model": service.model, "keys": bool(keys)}})
        # uvicorn raises the signal again at its end; an exit on request is a success
        signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        server.run(sockets=[listening])
        if not server.started:
            raise LambError("the service could not start", "see the log above for the reason")
        log.info("ended")
