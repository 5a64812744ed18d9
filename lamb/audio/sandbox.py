"""Decoding in processes that may die: a broken or hostile file costs its own decoder, and nothing else. [O]

    this process --(a line)--> server --fork--> monitor --fork--> decoder at the other end of the line
    this process --(a request and a file's descriptor)--> decoder --(windows of samples)--> this process

The server is a fresh interpreter with the decoders' libraries and nothing to lose: no model, no key, no file name. A
decoder bounds its own memory, and its processor time for each file, and writes windows to its line as fast as they are
taken. Plain bytes go both ways, so that what a file that took over its decoder says is never executed. A decoder that
has come to a file's end takes another one; the death of one is told by its monitor, which also ends it when the line
is closed.

    a message: kind (1 byte), length (8 bytes), content: float64 and float32 numbers of a window, or JSON

Where processes cannot fork (Windows), `windows` decodes in this process, without protection and limits; the service,
which decodes what strangers send, does not run there.
"""

import contextlib
import gc
import io
import json
import math
import os
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..config import DecodeLimits
from ..errors import LambError
from . import reader
from .errors import SAFE, AudioError, AudioRepair, Damage
from .sources import Source, check_file, name, open_path, seekable

USES = 500  # files after which a decoder is let go, with what it may have lost of its memory
IDLE = 4  # decoders that are kept for the next files
INFO, WINDOW, DAMAGE, WARNING, REFUSED, DIED, END, NONE = range(8)  # kinds of messages
DEATH = "so damaged that its decoder died"
SLOW = "takes longer to decode than is allowed"
_MORE = "end other programs, or allow more processes (ulimit -u) or memory"
_TRY = "try: python -m lamb.audio.sandbox < /dev/null"
# Hz; window and hop in s; limits in s and bytes; is damage told; track or 0; is a stretch wanted: its start and
# duration in s, 0: to the end
_REQUEST = struct.Struct("<5d?i?2d")
_MESSAGE = struct.Struct("<BQ")
_LARGEST = 2**31  # bytes of a message
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # never a key


CAN_FORK = hasattr(os, "fork")


class SandboxError(LambError, OSError):
    """No decoder can be started."""


def windows(
    source: Source,
    sample_rate: int,
    window: float,
    hop: float,
    damage: Damage | None = None,
    limits: DecodeLimits | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """As `reader.windows`, decoded in a process of its own within `limits`. Arrays need none."""
    if isinstance(source, tuple) or not CAN_FORK:
        with reader.opened(source, damage, limits.track if limits else None) as sound:
            yield from reader.cut(sound, sample_rate, window, hop)
        return
    with Decoding(source, sample_rate, window, hop, damage, limits) as decoding:
        decoding.info()
        yield from decoding.windows()


def load(
    source: Source,
    sample_rate: int,
    start: float = 0.0,
    duration: float | None = None,
    limits: DecodeLimits | None = None,
) -> np.ndarray:
    """As `reader.load`, samples (T,), decoded in a process of its own within `limits`. Arrays need none."""
    if isinstance(source, tuple) or not CAN_FORK:
        return reader.load(source, sample_rate, start, duration)
    reader.check_stretch(start, duration)
    with Decoding(source, sample_rate, limits=limits, stretch=(start, duration)) as decoding:
        return np.concatenate([x for _, x in decoding.windows()])


def start(wait: bool = False) -> None:
    """Start the server, so that it is there when the first file comes. Raises SandboxError."""
    if CAN_FORK:
        server = _server()
        if wait:
            server.wait()


class Decoding:
    """The decoding of one file in a process of its own: `info` and then `windows`, or `load`, once.

    Of a `stretch` (start in seconds, duration or None) there is no `info`: its `windows` are pieces of what
    `reader.load` gives.

    They raise AudioError where the file is the cause, also of the decoder's death, and SandboxError where no decoder
    can be started. `kill` ends it at any moment, from any thread.
    """

    def __init__(
        self,
        source: Source,
        sample_rate: int,
        window: float = 10.0,
        hop: float = 10.0,
        damage: Damage | None = None,
        limits: DecodeLimits | None = None,
        called: str | None = None,
        stretch: tuple[float, float | None] | None = None,
    ) -> None:
        if not CAN_FORK:
            raise SandboxError("this system has no decoding processes", "use Linux or macOS")
        self.name, self.sample_rate, self.damage = called or name(source), sample_rate, damage
        self._through = False  # whether the decoder is free for another file
        self._left = False  # whether it may have got one
        limits = limits or DecodeLimits()
        with ExitStack() as stack:
            file = _descriptor(source, stack)
            seconds = limits.seconds and limits.seconds + limits.seconds_per_mb * os.fstat(file).st_size / 1e6
            begin, duration = stretch or (0.0, None)
            request = _REQUEST.pack(
                *(sample_rate, window, hop, seconds, limits.memory * 1e6, damage is not None, limits.track or 0),
                *(stretch is not None, begin, duration or 0.0),
            )
            self._decoder = _decoder()
            with contextlib.suppress(ConnectionError):  # one that has just died: the end of its line says so
                socket.send_fds(self._decoder.line, [request], [file])

    def info(self) -> reader.AudioInfo:
        """What the header says."""
        kind, content = self._next()
        assert kind == INFO
        return reader.AudioInfo(**json.loads(content))

    def windows(self) -> Iterator[tuple[float, np.ndarray]]:
        """(start in seconds, samples (T,)) as from `reader.windows`."""
        while True:
            kind, content = self._next()
            if kind == END:
                return
            yield struct.unpack_from("<d", content)[0], np.frombuffer(content, "<f4", offset=8).copy()

    def load(self, max_duration: float, max_rate: int | None = None, max_channels: int | None = None) -> np.ndarray:
        """All samples (T,), unless there are more than is allowed, in seconds, Hz and channels."""
        info = self.info()
        for what, value, most in (("Hz", info.sample_rate, max_rate), ("channels", info.channels, max_channels)):
            if most is not None and value > most:
                raise AudioError(self.name, f"{value} {what}, more than the {most} allowed here", "convert it to fewer")
        problem = f"longer than the {max_duration:g} s allowed here"
        too_long = AudioError(self.name, problem, "cut it into shorter recordings")
        if info.duration is not None and info.duration > max_duration:
            raise too_long
        held, chunks = 0, []
        for _, x in self.windows():
            chunks.append(x)
            held += len(x)
            if held > max_duration * self.sample_rate:  # the header said nothing, or lied
                raise too_long
        return np.concatenate(chunks)

    def kill(self) -> None:
        """End the decoder, unless it is through; whoever waits for it gets an AudioError."""
        with _lock, contextlib.suppress(OSError):
            if not self._left:
                self._decoder.line.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "Decoding":
        return self

    def __exit__(self, *_: object) -> None:
        """Let the decoder have another file if it is through with this one; else end it."""
        self._decoder.uses += 1
        with _lock:
            self._left = True
            if self._through and self._decoder.uses < USES and len(_idle) < IDLE:
                _idle.append(self._decoder)
            else:
                self._decoder.close()

    def _next(self) -> tuple[int, bytes]:
        """The next INFO, WINDOW or END; what else is said on the way is passed on."""
        while True:
            try:
                header = self._decoder.inbox.read(_MESSAGE.size)
            except ConnectionError:  # it died with a request that it had not read
                header = b""
            if len(header) < _MESSAGE.size:
                self._decoder.server.check()
                raise AudioError(self.name, DEATH, SAFE)
            kind, size = _MESSAGE.unpack(header)
            content = self._decoder.inbox.read(min(size, _LARGEST))
            self._through = kind in (END, REFUSED)
            if kind in (INFO, WINDOW, END):
                return kind, content
            said = json.loads(content)
            if kind == DAMAGE and self.damage is not None:
                for begin, end in said["spans"]:  # the first may be the last one, grown
                    if self.damage.spans and self.damage.spans[-1][0] == begin:
                        self.damage.spans.pop()
                    self.damage.spans.append((begin, end))
                self.damage.truncated = said["truncated"]
            elif kind == WARNING:
                warnings.warn(AudioRepair(self.name, said), stacklevel=3)
            elif kind == REFUSED:
                raise AudioError(self.name, said["problem"], said["remedy"])
            elif kind == DIED:
                problem = SLOW if said == signal.SIGXCPU else DEATH
                raise AudioError(self.name, problem, SAFE)
            elif kind == NONE:
                raise SandboxError(f"no decoding process can be started ({said})", _MORE)


def _descriptor(source: Any, stack: ExitStack) -> int:
    """A descriptor of the file, closed by `stack`; what has none, such as bytes, is copied to an unnamed file."""
    if isinstance(source, str | os.PathLike):
        return stack.enter_context(open_path(source)).fileno()
    if isinstance(source, bytes | bytearray | memoryview):
        source = io.BytesIO(source)
    check_file(source)
    with contextlib.suppress(OSError, AttributeError):
        descriptor = int(source.fileno())
        source.flush()
        return descriptor
    copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    if seekable(source):
        source.seek(0)
    shutil.copyfileobj(source, copy)
    copy.flush()
    return copy.fileno()


class _Server:
    """The process that forks decoders, of the process `owner`."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._ready = False
        environment = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        here, given = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, given]))
        # One thread and few arenas: each would take address space from what a file may use.
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        self._control, other = socket.socketpair()
        with other:
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "lamb.audio.sandbox"],
                    stdin=other.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # what libraries print there may hold names from the file
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for this process
                )
            except OSError as error:
                raise SandboxError(f"no decoding process can be started ({error.strerror})", _TRY) from None

    @property
    def alive(self) -> bool:
        """Whether it forks decoders, for this process."""
        return self.owner == os.getpid() and self.process.poll() is None

    def fork(self, line: socket.socket) -> None:
        """Have a decoder at this end of a line."""
        with contextlib.suppress(ConnectionError):  # a server that has just died: the end of the line says so
            socket.send_fds(self._control, [b"F"], [line.fileno()])

    def wait(self, seconds: float = 60.0) -> None:
        """Wait until it is ready. Raises SandboxError."""
        self._control.settimeout(seconds)
        with contextlib.suppress(OSError):
            self._ready = self._ready or bool(self._control.recv(1))
        self._control.settimeout(None)
        if not self._ready:
            self.process.kill()
            self.process.wait()  # else it may seem alive a moment longer
            raise SandboxError("the decoding process does not start", _TRY)

    def check(self) -> None:
        """Raise SandboxError if it has ended before it was ever ready."""
        if not self._ready:
            self.wait()


class _Decoder:
    """This process's end of the line to a decoder, which one `Decoding` at a time has."""

    def __init__(self, server: _Server) -> None:
        self.server, self.uses = server, 0
        self.line, other = socket.socketpair()
        with other:
            server.fork(other)
        self.inbox = self.line.makefile("rb")

    @property
    def alive(self) -> bool:
        """Whether it can have a file, once it is idle."""
        poll = select.poll()
        poll.register(self.line, select.POLLIN)  # its end, or what its monitor says of it
        return self.server.alive and not poll.poll(0)

    def close(self) -> None:
        """Let go of it."""
        self.inbox.close()
        self.line.close()


_current: _Server | None = None
_idle: list[_Decoder] = []
_lock = threading.Lock()


def _server() -> _Server:
    """The server of this process, which is started where there is none."""
    global _current
    with _lock:
        if _current is None or not _current.alive:
            _current = _Server()
        return _current


def _decoder() -> _Decoder:
    """An idle decoder, or a new one."""
    server = _server()
    with _lock:
        while _idle:
            decoder = _idle.pop()
            if decoder.alive:
                return decoder
            decoder.close()
    return _Decoder(server)


# ---- in the server, the monitors and the decoders -----------------------------------------------------------------


def serve(control: socket.socket) -> None:
    """Fork a decoder for each line that comes, until the other end of `control` is closed."""
    import av  # noqa: F401  before the first file comes, and once for all of them
    import soundfile  # noqa: F401
    import soxr  # noqa: F401

    for number in (signal.SIGINT, signal.SIGTERM):  # a service manager tells all processes: the program decides
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for monitors
    gc.freeze()
    control.send(b"R")
    while (said := socket.recv_fds(control, 1, 1))[0]:
        with socket.socket(fileno=said[1][0]) as line:
            if _fork(line) == 0:
                control.close()
                _watch(line)


def _fork(line: socket.socket) -> int:
    """As `os.fork`; where the system has no process to give, say so on the line and return -1."""
    try:
        return os.fork()
    except OSError as error:
        with contextlib.suppress(OSError):  # nobody listens any more
            _say(line, NONE, error.strerror)
        return -1


def _watch(line: socket.socket) -> NoReturn:
    """The monitor: fork a decoder; end it when nobody listens any more, or say what it died of."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    life, held = os.pipe()  # `life` ends with the decoder, who alone holds the other end
    if (decoder := _fork(line)) < 0:
        os._exit(0)
    if decoder == 0:
        os.close(life)
        with contextlib.suppress(OSError):  # nobody listens any more
            while (said := socket.recv_fds(line, _REQUEST.size, 1))[0]:
                _decode(said[1][0], line, *_REQUEST.unpack(said[0]))
        os._exit(0)
    os.close(held)
    poll = select.poll()
    poll.register(life, 0)
    poll.register(line, 0)
    if life not in [number for number, _ in poll.poll()]:
        os.kill(decoder, signal.SIGKILL)
    _, status = os.waitpid(decoder, 0)
    if os.WIFSIGNALED(status):
        with contextlib.suppress(OSError):
            _say(line, DIED, os.WTERMSIG(status))
    os._exit(0)


def _decode(
    file: int,
    line: socket.socket,
    rate: float,
    window: float,
    hop: float,
    seconds: float,
    memory: float,
    lossy: bool,
    track: int,
    stretch: bool,
    begin: float,
    duration: float,
) -> None:
    """Send the windows of one file, or a stretch of it, within the limits. Raises OSError when nobody listens."""
    damage = Damage() if lossy else None
    said = Damage()

    def warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if isinstance(message, AudioRepair):
            _say(line, WARNING, message.problem)

    def tell() -> None:
        if damage and damage != said:
            new = damage.spans[max(0, len(said.spans) - 1) :]
            said.spans, said.truncated = list(damage.spans), damage.truncated
            _say(line, DAMAGE, {"spans": new, "truncated": damage.truncated})

    def send(found: Iterable[tuple[float, np.ndarray]]) -> None:
        for start, x in found:
            tell()
            samples = x.astype("<f4", copy=False).tobytes()
            line.sendall(_MESSAGE.pack(WINDOW, 8 + len(samples)) + struct.pack("<d", start) + samples)

    warnings.showwarning = warn
    warnings.simplefilter("always")
    try:
        with open(file, "rb") as content:
            _limit(content.fileno(), seconds, int(memory))
            if stretch:
                x = reader.load(content, int(rate), begin, duration or None)
                size = math.ceil(window * rate)
                send((begin + k / rate, x[k : k + size]) for k in range(0, len(x), size))
            else:
                with reader.opened(content, damage, track or None) as sound:
                    _say(line, INFO, asdict(sound.info))
                    send(reader.cut(sound, int(rate), window, hop))
        tell()
        line.sendall(_MESSAGE.pack(END, 0))
    except AudioError as error:
        _say(line, REFUSED, {"problem": error.problem, "remedy": error.remedy})
    except MemoryError:
        _say(line, REFUSED, {"problem": reader.NO_MEMORY, "remedy": SAFE})


def _limit(file: int, seconds: float, memory: int) -> None:
    import resource  # not on Windows

    unlimited = resource.RLIM_INFINITY
    regular = stat.S_ISREG(os.fstat(file).st_mode)  # a pipe may go on for days, and be copied to a file
    for limit, value in (
        *([] if sys.platform == "darwin" else [(resource.RLIMIT_AS, memory)]),  # macOS refuses it
        (resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds) if regular and seconds else unlimited),
        (resource.RLIMIT_FSIZE, 0 if regular else unlimited),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]  # of the shell or the cluster: it may be lower, and cannot be raised
        if hard != unlimited:
            value = hard if value == unlimited else min(value, hard)
        resource.setrlimit(limit, (value, hard))


def _say(line: socket.socket, kind: int, what: Any) -> None:
    content = json.dumps(what).encode()
    line.sendall(_MESSAGE.pack(kind, len(content)) + content)


if __name__ == "__main__":
    serve(socket.socket(fileno=0))
