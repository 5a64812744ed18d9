"""`lamb listen`: a microphone or a stream in, a line of JSON for each sound out, on and on."""

from __future__ import annotations

import io
import json
import signal
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import DEFAULT_MODEL
from .errors import one_line_warnings, say
from .options import OUTPUT, Device, Ignore, MinConfidence, Model, Only, Quiet, Threads, option, words

if TYPE_CHECKING:
    from ..live.events import Event


def listen(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="mic, mic:NAME, rtsp://..., http(s)://..., or - for standard input.",
            show_default=False,
        ),
    ],
    min_confidence: MinConfidence = 0.0,
    only: Only = None,
    ignore: Ignore = None,
    save: Annotated[Path | None, option("DIR", "Keep the sound of each event in this folder.", OUTPUT)] = None,
    mqtt: Annotated[
        str | None,
        option(
            "ADDRESS", "Also publish to mqtt://[USER:PASSWORD@]HOST/TOPIC, with discovery by Home Assistant.", OUTPUT
        ),
    ] = None,
    retries: Annotated[
        int | None,
        option(
            "N",
            "How often to connect again, in a row, once the stream is lost.",
            default="for ever; 0 for standard input",
            min=0,
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Listen to a microphone or a stream.

    Each sound is printed as a line of JSON, soon after it is over.

    A lost stream is connected to again. Ctrl-C, or SIGTERM, ends it cleanly.
    A password for MQTT can also be given in the environment, as LAMB_MQTT_PASSWORD.

    Exit code: 0 if it was stopped or the stream ended; 1 if the stream could not be opened or was lost for good;
    2 if the command was wrong.

    \b
    Examples:
      lamb listen mic --min-confidence 0.5
      lamb listen rtsp://camera.local/stream --only "glass,alarm,siren" --save heard/
      lamb listen rtsp://camera.local/stream --mqtt mqtt://homeassistant.local/lamb/yard
    """
    from ..config import ListenConfig
    from ..inference.captions import wanted
    from ..live.listen import Listener
    from ..live.sources import opener, told
    from .caption import load_captioner

    one_line_warnings(quiet)
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
    is_wanted = wanted(min_confidence, words(only), words(ignore))

    def warn(message: str) -> None:
        if not quiet:
            say("warning", message)

    config = ListenConfig()
    stdin = io.FileIO(0, closefd=False)  # a thread that waits in a buffered one would abort the process at its end
    opener(source, 16_000, config.patience, stdin)  # a wrong source is told before a model is loaded
    with ExitStack() as stack:
        publisher = None
        if mqtt is not None:
            from ..live.mqtt import Publisher

            publisher = Publisher(mqtt, told(source), warn)
            stack.callback(publisher.close)
        captioner = load_captioner(model, device, threads)
        listener = Listener(
            captioner.engine,
            captioner.options,
            opener(source, captioner.engine.sample_rate, config.patience, stdin),
            config,
            say=warn,
            changed=publisher.changed if publisher else lambda state: None,
            tries=0 if source == "-" and retries is None else retries,
            live=source != "-",
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: listener.stop()))
        began = datetime.now(UTC)
        for event in listener:
            if not is_wanted(event.caption, event.confidence):
                continue
            told_event = _told(event, began)
            if save is not None:
                told_event["clip"] = _saved(save, event, began, captioner.engine.sample_rate)
            print(json.dumps(told_event, ensure_ascii=False), flush=True)
            if publisher:
                publisher.publish(told_event)


def _told(event: Event, began: datetime) -> dict[str, Any]:
    """The JSON object of an event; `time` is the clock's when it began, `start` and `end` are since listening began."""
    return {
        "time": (began + timedelta(seconds=event.start)).isoformat(timespec="milliseconds"),
        "start": round(event.start, 2),
        "end": round(event.end, 2),
        "caption": event.caption,
        "confidence": round(event.confidence, 4),
    }


def _saved(folder: Path, event: Event, began: datetime, rate: int) -> str | None:
    """The file that the event's sound is kept in; a full disk does not end the listening."""
    from ..errors import LambError
    from ..live.clips import save

    try:
        return str(save(folder, began + timedelta(seconds=event.start), event.caption, event.samples, rate))
    except (LambError, OSError) as error:
        say("error", error)
        return None
