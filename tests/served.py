"""The service in this process, on a free port, for the tests of `lamb.serving.server` and for `benchmarks/serve.py`."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn

from lamb.config import ServeConfig
from lamb.inference.captioner import Captioner
from lamb.serving.server import create_app
from lamb.serving.service import Service

SAMPLES = Path(__file__).parents[1] / "samples"
FILES = sorted(SAMPLES.glob("*.flac"))


@cache
def tiny() -> Captioner:
    """The bundled model, loaded once a process."""
    return Captioner.load("tiny", device="cpu")


class Held:
    """A captioner that begins a batch only once `go` is set; `batches` are the sizes of those begun."""

    def __init__(self, captioner: Captioner):
        self.engine, self.options, self.stream = captioner.engine, captioner.options, captioner.stream
        self.captioner, self.go, self.batches = captioner, threading.Event(), list[int]()

    def caption(self, files: Sequence[Any], **options: Any) -> Any:
        """As `Captioner.caption`."""
        assert self.go.wait(120)
        self.batches.append(len(files))
        return self.captioner.caption(files, **options)


class Served:
    """A running service and where it is."""

    def __init__(self, service: Service, url: str):
        self.service, self.url = service, url
        self.port = int(url.rpartition(":")[2])


@contextmanager
def running(
    captioner: Any = None,
    keys: Sequence[str] = (),
    batch_size: int | None = None,
    model: str = "tiny",
    **settings: Any,
) -> Iterator[Served]:
    """The service, in a thread; it has finished what it took when this ends."""
    given = ServeConfig(**{"port": 0, "decoders": 1, "batches": 1, **settings})
    service = Service(captioner or tiny(), model, given, batch_size)
    config = uvicorn.Config(create_app(service, keys), port=0, lifespan="on", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), 60)
        yield Served(service, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    finally:
        if isinstance(captioner, Held):
            captioner.go.set()
        server.should_exit = True
        thread.join(120)


def until(condition: Any, seconds: float = 60.0) -> None:
    """Wait for `condition()`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
