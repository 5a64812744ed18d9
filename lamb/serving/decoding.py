"""Strangers' files are decoded in worker processes, which may crash, hang or run out of memory without harm to others.

A worker is a fresh interpreter with `lamb.audio` and no model, key or file name. It reads a file's content from its
standard input and writes samples to its standard output, plain bytes both ways: what a file that took over its
decoder could say there is never executed. A worker that dies, does not answer in time or is left by its client in the
middle of a file is killed, and another one takes its place.

    to the worker      length (8 bytes), the file's content
    from the worker    kind (1 byte), length (8 bytes), samples as float32 or a refusal as JSON
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lamb.audio import reader as audio
from lamb.config import ServeConfig
from lamb.errors import LambError

CHUNK = 2**20  # bytes of an upload that are held at a time
SAMPLES, REFUSED, BROKEN = range(3)  # kinds of answer: what was asked for; an AudioError; a bug of ours
_LENGTH, _ANSWER = struct.Struct("<Q"), struct.Struct("<BQ")
_SAFE = "record, export or convert it again, for instance with: ffmpeg -i FILE sound.wav"
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # never a key

log = logging.getLogger("lamb.serve")


class DecoderError(LambError, OSError):
    """A decoding process that cannot be started."""


class Decoders:
    """`settings.decoders` workers that turn files into samples at `sample_rate` Hz."""

    def __init__(self, sample_rate: int, settings: ServeConfig, on_replaced: Callable[[str], object] = lambda _: None):
        self.sample_rate, self.settings, self.on_replaced = sample_rate, settings, on_replaced
        self._idle: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
        self._living: set[asyncio.subprocess.Process] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._failing = False  # to replace a worker

    async def start(self) -> None:
        """Start all workers. Raises DecoderError if one cannot be started."""
        for process in await asyncio.gather(*(self._spawn() for _ in range(self.settings.decoders))):
            self._idle.put_nowait(process)

    async def stop(self) -> None:
        """End all workers, whatever they do."""
        for task in self._starting:
            task.cancel()
        for process in list(self._living):
            await self._end(process)

    @property
    def alive(self) -> bool:
        """Whether a file would be decoded, if need be once a worker has been replaced."""
        return bool(self._living) or not self._failing

    @property
    def pids(self) -> list[int]:
        """The workers' process ids; fewer than `settings.decoders` while one is being replaced."""
        return [process.pid for process in self._living]

    async def decode(self, file: BinaryIO, name: str = "<bytes>") -> np.ndarray:
        """Samples (T,), mono float32, of all of `file`. Raises AudioError, also for a file that kills its decoder."""
        process = await self._idle.get()
        try:
            async with asyncio.timeout(self.settings.decode_timeout):
                kind, answer = await self._ask(process, file)
        except BaseException as error:  # a dead, hanging or half-read worker, also one whose client is gone
            self._replace(process, type(error).__name__)
            if isinstance(error, TimeoutError):
                problem = f"not decoded within {self.settings.decode_timeout:g} s"
                raise audio.AudioError(name, problem, "give a shorter or simpler file") from None
            if isinstance(error, asyncio.IncompleteReadError | ConnectionError):
                raise audio.AudioError(name, "so damaged that its decoder died", _SAFE) from None
            raise
        if kind == SAMPLES:
            self._idle.put_nowait(process)
            return np.frombuffer(answer, "<f4")
        said = json.loads(answer)
        if kind == BROKEN:  # such as out of memory: it may not recover
            log.warning("decoder failed", extra={"fields": {"error": said["error"]}})
            self._replace(process, said["error"].split(" ")[0])
        else:
            self._idle.put_nowait(process)
        raise audio.AudioError(name, said["problem"], said["remedy"])

    async def _ask(self, process: asyncio.subprocess.Process, file: BinaryIO) -> tuple[int, bytes]:
        assert process.stdin
        file.seek(0)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        process.stdin.write(_LENGTH.pack(size))
        while chunk := file.read(CHUNK):
            process.stdin.write(chunk)
            await process.stdin.drain()
        return await self._answer(process)

    async def _answer(self, process: asyncio.subprocess.Process) -> tuple[int, bytes]:
        assert process.stdout
        kind, size = _ANSWER.unpack(await process.stdout.readexactly(_ANSWER.size))
        if size > 4 * self.sample_rate * (self.settings.max_duration + 1) + CHUNK:
            raise ConnectionError("a worker that says more than it can have")
        return kind, await process.stdout.readexactly(size)

    async def _spawn(self) -> asyncio.subprocess.Process:
        """A worker that has said that it is ready."""
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        here, given = str(Path(audio.__file__).parents[2]), os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, given]))
        # One thread and few arenas: each would take address space from what the file may use.
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        settings = json.dumps({"sample_rate": self.sample_rate, **asdict(self.settings)})
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "lamb.serving.decoding", settings),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # what libraries print there may hold names from the file
            limit=CHUNK,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the server
        )
        self._living.add(process)
        try:
            await asyncio.wait_for(self._answer(process), 60)
        except BaseException as error:
            await self._end(process)
            if isinstance(error, asyncio.IncompleteReadError | ConnectionError | TimeoutError):
                remedy = "try: python -m lamb.serving.decoding '{}', or more --decode-memory"
                raise DecoderError("a decoding process could not be started", remedy) from None
            raise
        return process

    def _replace(self, process: asyncio.subprocess.Process, reason: str) -> None:
        self.on_replaced(reason)
        task = asyncio.ensure_future(self._start_another(process))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _start_another(self, process: asyncio.subprocess.Process) -> None:
        await self._end(process)
        while True:
            try:
                self._idle.put_nowait(await self._spawn())
                self._failing = False
                return
            except OSError as error:
                self._failing = True
                log.error("decoder not replaced", extra={"fields": {"error": str(error)}})
                await asyncio.sleep(1)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        self._living.discard(process)
        if process.returncode is None:
            process.kill()
        await process.wait()


# ---- in the worker ------------------------------------------------------------------------------------------------


def decoded(content: bytes, sample_rate: int, settings: ServeConfig) -> np.ndarray:
    """Samples (T,) of a file, its header checked before it is decoded. Raises AudioError."""
    info = audio.probe(content)
    rate, channels = (info.sample_rate, settings.max_rate), (info.channels, settings.max_channels)
    for what, (value, most) in {"Hz": rate, "channels": channels}.items():
        if value > most:
            raise audio.AudioError("", f"{value} {what}, above the {most} of this service", "convert it to fewer")
    problem = f"longer than the {settings.max_duration:g} s of this service"
    too_long = audio.AudioError("", problem, "cut it into shorter recordings")
    if info.duration is not None and info.duration > settings.max_duration:
        raise too_long
    held, chunks = 0, []
    for _, x in audio.windows(content, sample_rate, 10.0, 10.0):  # a header may have said nothing, or lied
        chunks.append(x)
        held += len(x)
        if held > settings.max_duration * sample_rate:
            raise too_long
    return np.concatenate(chunks)


def answer(content: bytes, sample_rate: int, settings: ServeConfig) -> tuple[int, bytes]:
    """What a worker says to a file."""
    try:
        return SAMPLES, decoded(content, sample_rate, settings).astype("<f4", copy=False).tobytes()
    except audio.AudioError as error:
        return REFUSED, json.dumps({"problem": error.problem, "remedy": error.remedy}).encode()
    except MemoryError:
        said = {"problem": f"needs more than {settings.decode_memory:g} MB to decode", "remedy": _SAFE}
        return BROKEN, json.dumps({**said, "error": "MemoryError"}).encode()
    except Exception as error:  # of a decoder that met what its authors did not expect; where, but not what is in it
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
        said = {"problem": "damaged: it cannot be decoded", "remedy": _SAFE}
        return BROKEN, json.dumps({**said, "error": f"{type(error).__name__} {where}"}).encode()


def main() -> None:
    """The worker: files from standard input until it ends."""
    given = json.loads(sys.argv[1])
    sample_rate = given.pop("sample_rate", 16_000)
    settings = ServeConfig(**given)
    for number in (signal.SIGINT, signal.SIGTERM):  # a service manager tells all processes: the server decides
        signal.signal(number, signal.SIG_IGN)
    inbox, outbox = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints now does not print into an answer
    for pipe in (inbox, outbox):  # a clip at once: with 64 kB at a time the server would wake up for each
        with contextlib.suppress(AttributeError, OSError):  # not on Linux; more than the system allows; not a pipe
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, CHUNK)

    import av  # noqa: F401  before the first file comes, and on nobody's time
    import soundfile  # noqa: F401
    import soxr  # noqa: F401

    memory = int(settings.decode_memory * 1e6)
    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))
    outbox.write(_ANSWER.pack(SAMPLES, 0))
    outbox.flush()
    while len(header := inbox.read(_LENGTH.size)) == _LENGTH.size:
        content = inbox.read(_LENGTH.unpack(header)[0])
        signal.alarm(math.ceil(settings.decode_timeout) + 1)  # should the server be gone, nobody else would end it
        kind, said = answer(content, sample_rate, settings)
        signal.alarm(0)
        outbox.write(_ANSWER.pack(kind, len(said)) + said)
        outbox.flush()


if __name__ == "__main__":
    main()
