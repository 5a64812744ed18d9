"""The workers of a bulk run turn inputs into rows. Each has one model, in a process of its own or in a Ray actor.

A worker gets inputs by `submit`, which returns a future, and never touches the folder of the run. If it dies because of
a decoder or a kill, its futures raise an exception; an error within Python is in the `Answer`.
"""

import glob
import io
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

from ..audio.errors import AudioError
from ..audio.files import SPECIAL, is_special
from ..audio.sandbox import SandboxError
from ..config import DEFAULT_MODEL, DecodeLimits
from ..errors import LambError, optional, reason
from ..inference.loading import processors
from .listing import Input, open_address

if TYPE_CHECKING:
    from ..inference.captioner import Captioner


class WorkerError(LambError, OSError):
    """No worker can start: the model cannot be loaded, or the cluster cannot be reached."""


@dataclass(frozen=True)
class Settings:
    """Options of `Captioner.load` and `Captioner.stream`."""

    model: str = DEFAULT_MODEL
    device: str | None = None
    threads: int | None = None  # of each worker; None: an equal share of the cores
    n_best: int = 1
    beams: int | None = None
    batch_size: int | None = None
    timeline: bool = False
    window: float | None = None  # seconds
    hop: float | None = None  # seconds
    limits: DecodeLimits | None = field(default_factory=DecodeLimits)  # None: no limits


@dataclass(frozen=True)
class Answer:
    """Rows in the order of the inputs, or the problem."""

    rows: list[dict[str, Any]]
    problem: str | None = None


class Worker(Protocol):
    """`ready` gives None once the model is loaded, or the reason why it cannot be loaded."""

    ready: "Future[str | None]"

    def submit(self, inputs: list[Input]) -> "Future[Answer]":
        """Caption the inputs."""

    def stop(self) -> None:
        """End immediately, also in the middle of work."""


# ---- in the worker ------------------------------------------------------------------------------------------------


@cache
def _captioner(settings: Settings) -> "Captioner":
    from ..inference.captioner import Captioner

    captioner = Captioner.load(settings.model, device=settings.device)
    captioner.limits = settings.limits
    return captioner


def load(settings: Settings) -> str | None:
    """Load the model, and try the options without any input; return the problem, or None."""
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)  # read by torch when it is imported
    warnings.simplefilter("ignore")  # several processes would warn of thousands of clips
    try:
        list(_captioner(settings).stream([], **_options(settings)))
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _options(settings: Settings) -> dict[str, Any]:
    """Those of `Captioner.stream`."""
    loading = ("model", "device", "threads", "limits")
    return {key: value for key, value in asdict(settings).items() if key not in loading}


def work(settings: Settings, inputs: list[Input]) -> Answer:
    """The rows of `inputs`: `Caption.to_dict` with the name and, if there is one, the id of the input."""
    captioner, options = _captioner(settings), _options(settings)
    try:
        rate = captioner.engine.sample_rate
        captions = captioner.stream((_source(item, rate, settings.limits) for item in inputs), **options)
        rows = [
            {**({"id": item.id} if item.id else {}), **replace(caption, file=item.file).to_dict()}
            for item, caption in zip(inputs, captions, strict=True)
        ]
    except Exception as error:  # such as a lack of GPU memory; the caller tries fewer inputs
        return Answer([], f"{type(error).__name__}: {reason(error)}")
    return Answer(rows)


class _Lazy(io.RawIOBase):
    """A file that is only fetched when a background thread of the captioner reads it to copy it to disk."""

    def __init__(self, name: str, fetch: Callable[[], Any]) -> None:
        self.name, self._fetch = name, fetch
        self._file: Any = None

    def read(self, size: int = -1) -> bytes:
        try:
            self._file = self._file or self._fetch()
            if not (data := self._file.read(size)):
                self._file.close()
            return data
        except (AudioError, SandboxError):
            raise
        except Exception as error:  # each store has its own exceptions
            remedy = "check the address, your rights and the network, then --retry-failed"
            raise AudioError(self.name, f"cannot be fetched ({type(error).__name__}: {error})", remedy) from error


def _source(item: Input, rate: int, limits: DecodeLimits | None) -> Any:
    """The source of `item` for the captioner: a path, or a file object that is fetched when it is read."""
    path = item.path or item.file
    if "://" in path:
        whole: Any = _Lazy(path, lambda: _open(path))
    else:
        whole = path
        if is_special(path):  # reading a pipe or a device might never end
            return _Lazy(path, lambda: _refuse(path))
    if not item.start and item.duration is None:
        return whole
    return _Lazy(path, lambda: _stretch(whole, rate, item, limits))


def _open(url: str) -> Any:
    fs, path = open_address(url)
    return fs.open(path, "rb")


def _refuse(file: str) -> Any:
    raise AudioError(file, *SPECIAL)


def _stretch(whole: Any, rate: int, item: Input, limits: DecodeLimits | None) -> io.BytesIO:
    """The part of a recording that is the clip, as a wav file."""
    import soundfile

    from ..audio import reader, sandbox

    load = partial(sandbox.load, limits=limits) if limits else reader.load
    x = load(whole, rate, item.start, item.duration)
    file = io.BytesIO()
    soundfile.write(file, x, rate, "FLOAT", format="WAV")
    file.seek(0)
    return file


# ---- in the process that runs it ----------------------------------------------------------------------------------


class Process:
    """A worker on this machine. It ends when the pipe `leash` is closed, also because this process died."""

    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._leash, other = context.Pipe()
        self._pool = ProcessPoolExecutor(1, context, _begin, (other,))
        self._settings = settings
        self.ready = self._pool.submit(load, settings)

    def submit(self, inputs: list[Input]) -> "Future[Answer]":
        return self._pool.submit(work, self._settings, inputs)

    def stop(self) -> None:
        self._leash.close()
        # waited for: a pool that ends together with the interpreter may find its own pipe closed (Python 3.11)
        self._pool.shutdown(wait=True, cancel_futures=True)


def _begin(leash: Any) -> None:
    """Prepare a worker: it ignores Ctrl-C, which the main process handles, and ends with the main process."""
    import signal
    import threading

    def follow() -> None:
        try:
            leash.recv()
        finally:
            os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, daemon=True).start()


class Actor:
    """A worker in a Ray cluster."""

    def __init__(self, settings: Settings, cores: float, gpus: float) -> None:
        import ray

        remote = ray.remote(num_cpus=cores, num_gpus=gpus, max_restarts=0)(_Remote)
        self._actor = remote.remote(settings)
        self.ready = self._actor.load.remote().future()

    def submit(self, inputs: list[Input]) -> "Future[Answer]":
        return self._actor.work.remote(inputs).future()

    def stop(self) -> None:
        import ray

        ray.kill(self._actor)


class _Remote:
    """The class of the actor, which runs the same two functions."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def load(self) -> str | None:
        return load(self.settings)

    def work(self, inputs: list[Input]) -> Answer:
        return work(self.settings, inputs)


@contextmanager
def crew(settings: Settings, workers: int | None, ray: str | None) -> Iterator[tuple[Callable[[int], Worker], int]]:
    """A function that starts worker number k, and the number of workers."""
    if ray is not None:
        with _cluster(ray, settings, workers) as hiring:
            yield hiring
        return
    cores = processors()
    gpus = 0 if settings.device else _gpus()
    workers = workers or gpus or (cores if settings.device in (None, "cpu") else 1)
    settings = replace(settings, threads=settings.threads or max(1, cores // workers))

    def hire(number: int) -> Worker:
        return Process(replace(settings, device=f"cuda:{number % gpus}") if gpus else settings)

    yield hire, workers


def _gpus() -> int:
    if not glob.glob("/dev/nvidia[0-9]*") and not os.path.exists("/dev/kfd"):
        return 0  # torch would take two seconds to find out
    import torch

    return torch.cuda.device_count()


@contextmanager
def _cluster(address: str, settings: Settings, workers: int | None) -> Iterator[tuple[Callable[[int], Worker], int]]:
    ray = optional("ray", "--ray needs Ray", "cluster")
    threads = settings.threads or 1
    options: dict[str, Any] = {"address": address}
    if address == "local":  # as many "cores" as the workers ask for, be they there or not
        options["num_cpus"] = max(processors(), (workers or 1) * threads)
        options["include_dashboard"] = False
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:
        raise WorkerError(f"no Ray cluster answers at {address} ({error}); start one with ray start --head") from error
    try:
        there = ray.cluster_resources()
        device = settings.device or ("cuda" if there.get("GPU") else "cpu")
        on_gpu = device.startswith("cuda")
        count = workers or int(there.get("GPU", 1) if on_gpu else there.get("CPU", 1) // threads) or 1
        chosen = replace(settings, threads=threads, device=device)
        yield (lambda number: Actor(chosen, threads, 1 if on_gpu else 0)), count
    finally:
        ray.shutdown()
