"""`lamb serve`: captions over HTTP. `lamb demo`: a page in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from ..config import DEFAULT_MODEL, ServeConfig
from .caption import load_captioner
from .errors import needing, one_line_warnings, say
from .options import (
    LOOPBACK,
    MODEL_HELP,
    BatchSize,
    Device,
    EngineName,
    Model,
    Threads,
    option,
    options_of,
)


@options_of(ServeConfig)
def serve(
    keys: Annotated[
        Path | None,
        option(
            "FILE",
            "A file of API keys, one per line; those in the environment variable LAMB_API_KEYS count too.",
            default="no key is required",
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    engine: EngineName = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    **settings: Any,
) -> None:
    """Serve captions over HTTP.

    Example: curl -F file=@dog.wav http://127.0.0.1:8000/v1/caption

    Logs go to standard error, one JSON object per line. The page /docs describes the interface.
    """
    with needing("serve"):
        from ..serving.server import Service, model_name, read_keys, serve

    config = ServeConfig(**settings)
    known = read_keys(keys)
    if not known and config.host not in LOOPBACK:
        say("warning", f"anyone who reaches {config.host} can use this service; see --keys")
    captioner = load_captioner(model, device, threads, engine)
    serve(Service(captioner, model_name(model), config, batch_size), known)


def demo(
    model: Annotated[
        list[str] | None,
        option("NAME", f"{MODEL_HELP} May be repeated; the page then offers a choice.", default=DEFAULT_MODEL),
    ] = None,
    host: Annotated[str, option("ADDRESS", "The address to listen on; 0.0.0.0 is every interface.")] = "127.0.0.1",
    port: Annotated[int, option("N", "The port to listen on.", min=1, max=65535)] = 7860,
    device: Device = None,
    data: Annotated[
        str | None,
        option(
            "PATH",
            "The clips whose modality gap is shown: a manifest with captions, or a folder of labelled recordings.",
            default="the samples of the repository",
        ),
    ] = None,
    library: Annotated[Path | None, option("DB", "An index made by lamb index, to be searched on the page.")] = None,
) -> None:
    """Show captions on a page in the browser.

    The page also shows timelines, the effect of the Token Guide and the modality gap."""
    from ..serving.page import demo

    one_line_warnings(quiet=False)
    if host not in LOOPBACK:
        say("warning", f"anyone who reaches {host} can use this page")
    demo(model or [DEFAULT_MODEL], host, port, device, data, library)
