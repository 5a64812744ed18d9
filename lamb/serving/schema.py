"""Requests and answers of the HTTP interface, for validation and for the OpenAPI description."""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from lamb.config import DecodeConfig
from lamb.errors import OptionError
from lamb.inference.captions import Caption

EVENTS = "text/event-stream"
OVERLAP = 4  # most windows that may cover a moment: a second of sound costs as many times the work
MEDIA = {
    "json": "application/json",
    "jsonl": "application/jsonl",
    "text": "text/plain",
    "csv": "text/csv",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "audacity": "text/plain",
    "raven": "text/tab-separated-values",
}
EXAMPLE: dict[str, Any] = {  # of `tiny`, for samples/siren.flac
    "file": "siren.flac",
    "duration": 6.0,
    "caption": "An emergency siren sounds.",
    "score": -0.2202,
    "confidence": 0.9933,
    "captions": ["An emergency siren sounds."],
    "sounds": [{"text": "An emergency siren sounds", "labels": ["siren"], "confidence": 0.9929}],
    "segments": [],
}


class CaptionOptions(BaseModel):
    """Options of `lamb caption`, within bounds that a shared machine can bear."""

    model_config = ConfigDict(extra="forbid")

    n_best: int = Field(1, ge=1, le=16, description="How many captions, best first.")
    beams: int | None = Field(None, ge=1, le=16, description="Width of the beam search; the model's own if not given.")
    sample: bool = Field(False, description="Draw captions at random instead.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Makes `sample` repeatable.")
    timeline: bool = Field(False, description="Caption window by window too, with times.")
    window: float | None = Field(None, ge=0.5, le=60, description="Seconds of a window; the model's own if not given.")
    hop: float | None = Field(
        None,
        ge=0.5,
        le=60,
        description="Seconds from one window's start to the next's; at least a quarter of a window.",
    )
    format: Literal["json", "jsonl", "text", "csv", "srt", "vtt", "audacity", "raven"] = Field(
        "json", description="As of `lamb caption`."
    )
    stream: bool = Field(False, description="Send segments as server-sent events, each as soon as it is final.")

    def check(self, own: DecodeConfig) -> None:
        """Raise OptionError for windows that overlap too much, of which one that is not given is the model's `own`."""
        window = own.window if self.window is None else self.window
        if self.hop is not None and self.hop < window / OVERLAP:
            raise OptionError(
                f"hop {self.hop:g} s is less than a quarter of the window of {window:g} s",
                f"choose {window / OVERLAP:g} s or more, or a shorter window",
            )


class TranscriptionOptions(BaseModel):
    """Fields of the OpenAI audio API that mean something here; others, such as `language`, are passed over."""

    model: str = Field("", description="Any name; the model that is loaded answers.", examples=["tiny"])
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    stream: bool = Field(False, description="Send segments as server-sent events.")


class SegmentJSON(BaseModel):
    """What is heard from `start` to `end`, in seconds."""

    start: float
    end: float
    caption: str
    confidence: float | None = None


class SoundJSON(BaseModel):
    """A sound that the caption names: its words, and the labels for which they may stand."""

    text: str
    labels: list[str]
    confidence: float


class HeardJSON(BaseModel):
    """A sound of a long recording, and the start and end of each stretch in which it occurs, in seconds."""

    sound: str
    count: int
    seconds: float
    times: list[tuple[float, float]]


class CaptionJSON(BaseModel):
    """What `lamb caption --format jsonl` prints for a file; `file` is the name that came with it, `-` without one."""

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE})

    file: str
    duration: float
    caption: str
    score: float | None
    confidence: float | None
    captions: list[str]
    scores: list[float | None] | None = Field(None, description="Of the captions, if there are several.")
    sounds: list[SoundJSON] | None = Field(None, description="Those that the caption names, if the model weighs them.")
    segments: list[SegmentJSON]
    digest: list[HeardJSON] | None = Field(None, description="Of a recording of ten minutes or more with segments.")
    damage: list[str] | None = Field(None, description="What of the recording could not be decoded.")


class Transcription(BaseModel):
    """The caption of the whole recording."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(examples=[EXAMPLE["caption"]])


class VerboseSegment(BaseModel):
    """A segment; `avg_logprob` is the logarithm of its confidence. The last four mean nothing here."""

    id: int
    start: float
    end: float
    text: str
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float = 0.0
    seek: int = 0
    temperature: float = 0.0
    tokens: list[int] = []


class VerboseTranscription(BaseModel):
    """The caption of the whole recording, and those of its segments."""

    task: str = "transcribe"
    language: str = "english"
    duration: float
    text: str
    segments: list[VerboseSegment]

    @classmethod
    def of(cls, caption: Caption) -> "VerboseTranscription":
        """`caption` in OpenAI's words."""
        segments = []
        for number, segment in enumerate(caption.segments):
            given, text = segment.to_dict(), segment.caption.encode()
            segments.append(
                VerboseSegment(
                    id=number,
                    start=given["start"],
                    end=given["end"],
                    text=segment.caption,
                    avg_logprob=round(math.log(max(segment.confidence or 0.0, 1e-6)), 4),
                    compression_ratio=round(len(text) / len(zlib.compress(text)), 4),
                )
            )
        return cls(duration=caption.to_dict()["duration"], text=caption.text, segments=segments)


class Model(BaseModel):
    """The model that this service has loaded."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "lamb"


class Models(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


class Problem(BaseModel):
    """What is wrong and what to do about it."""

    message: str = Field(examples=["siren.flac: empty (0 bytes); copy or download it again"])
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = None
    code: str | None = Field(None, examples=["unreadable_audio"])


class ProblemJSON(BaseModel):
    """An error, in the shape of OpenAI's."""

    error: Problem


PROBLEMS = {
    400: "A request that cannot be read",
    401: "No valid key",
    404: "No such model",
    408: "Too slow an upload",
    413: "Too large",
    422: "A sound or an option that cannot be used",
    503: "Too many requests; Retry-After says when to come again",
}


def problem(status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that failed."""
    text = message.encode("utf-8", "replace").decode()  # the charset of a form may produce surrogates
    kind: Any = "server_error" if status >= 500 else "invalid_request_error"
    content = ProblemJSON(error=Problem(message=text, type=kind, code=code))
    return JSONResponse(content.model_dump(), status, dict(headers or {}))


def form(options: type[BaseModel], raw: bool = False) -> dict[str, Any]:
    """The OpenAPI description of a request body: a form with a file and options or, if `raw`, also the file alone."""
    schema = options.model_json_schema()
    binary = {"type": "string", "format": "binary", "description": "A sound: wav, flac, mp3, ogg, m4a, webm ..."}
    whole = {
        "type": "object",
        "properties": {"file": binary, **schema["properties"]},
        "required": ["file", *schema.get("required", ())],
    }
    content: dict[str, Any] = {"multipart/form-data": {"schema": whole}}
    if raw:
        content["application/octet-stream"] = {"schema": binary}
    return {"requestBody": {"required": True, "content": content}}


def responses(model: Any, media: Sequence[str] = (), *problems: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of the answers to a request."""
    content = {kind: {"schema": {"type": "string"}} for kind in media}
    answers: dict[int | str, dict[str, Any]] = {200: {"model": model, "content": content}}
    return answers | {code: {"model": ProblemJSON, "description": PROBLEMS[code]} for code in problems}
