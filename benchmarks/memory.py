"""How much memory long runs take: `lamb index` of thousands of recordings, and hours of `lamb listen`.

    python benchmarks/memory.py index [--files N] [--kill]
    python benchmarks/memory.py listen [--hours H]

The real commands run in processes of their own; the memory that the command and its children have written is read at
intervals. `index` is given made-up recordings of a second each; with `--kill` it is killed (SIGKILL) after a third of
them, and started again. `listen` is given a made-up stream on standard input as fast as it takes it: every fifteen
seconds one of the samples in quiet noise.
"""

import argparse
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from lamb.config import LibraryConfig
from lamb.errors import LambError
from lamb.library.store import Store

RATE = 16_000
SAMPLES = Path(__file__).parents[1] / "samples"


def memory(pid: int) -> float:
    """MB that a process and its descendants have written: without the code and the weights, which lie in files."""
    total = 0.0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            total += float(line.split()[1]) / 1024 if line.startswith("Anonymous:") else 0.0
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(memory(int(child)) for child in (task / "children").read_text().split())
    except (OSError, ProcessLookupError):  # it has just ended
        pass
    return total


def watched(
    process: "subprocess.Popen[bytes]", done: Callable[[], float], unit: str, step: float, until: float = np.inf
) -> None:
    """Print the memory whenever a `step` more is done, until the process ends or `until` is done."""
    began, last, peaks = time.perf_counter(), 0.0, []
    while process.poll() is None:
        now = done()
        if now >= until:
            return
        if now >= last + step:
            last = now
            peaks.append(memory(process.pid))
            print(f"{now:10.2f} {unit}: {peaks[-1]:6.0f} MB, {time.perf_counter() - began:6.0f} s", flush=True)
        time.sleep(2)
    half = len(peaks) // 2
    if half:
        print(f"largest of the first half {max(peaks[:half]):.0f} MB, of the second {max(peaks[half:]):.0f} MB")
    if process.returncode:
        sys.exit(f"the command failed: {process.returncode}")


def index(files: int, kill: bool) -> None:
    """Memory of `lamb index` over `files` recordings; with `kill` what a second run makes of it."""
    with tempfile.TemporaryDirectory() as place:
        sounds, base = Path(place) / "sounds", Path(place) / "db"
        rng = np.random.default_rng(0)
        for k in range(files):
            folder = sounds / f"{k % 20:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            x = np.sin(2 * np.pi * rng.uniform(50, 4000) * np.arange(RATE) / RATE) * rng.uniform(0.05, 0.5)
            soundfile.write(folder / f"{k:06d}.wav", x + rng.normal(0, 0.01, RATE), RATE)

        def keys() -> list[str]:
            try:
                return [file.key for file in Store.open(base, LibraryConfig()).files()]
            except (LambError, OSError):  # not there yet
                return []

        def done() -> float:
            return float(len(keys()))

        command = [sys.executable, "-m", "lamb", "index", str(sounds), "--to", str(base), "--beams", "1", "--quiet"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        if kill:
            watched(process, done, "files", files / 20, until=files / 3)
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"killed after {done():.0f} files")
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        watched(process, done, "files", files / 20)
        found = keys()  # a file of a second is one segment, which has one row
        if len(found) != files or len(set(found)) != files:
            sys.exit(f"{len(set(found))} of {files} files are in the index, in {len(found)} rows")
        print(f"all {files} files are in the index once")


def listen(hours: float) -> None:
    """Memory of `lamb listen -` for a stream of `hours` hours."""
    sounds = [soundfile.read(path, dtype="float32")[0] for path in sorted(SAMPLES.glob("*.flac"))]
    process = subprocess.Popen(
        [sys.executable, "-m", "lamb", "listen", "-", "--quiet"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    fed, events = 0.0, 0

    def feed() -> None:
        nonlocal fed
        rng = np.random.default_rng(0)
        with process.stdin as stream:
            stream.write(b".snd" + struct.pack(">5I", 24, 2**32 - 1, 3, RATE, 1))  # an AU file of 16 bits, without end
            while fed < hours:
                x = rng.normal(0, 0.001, 15 * RATE)
                sound = sounds[rng.integers(len(sounds))][: 10 * RATE]
                x[: len(sound)] += sound
                stream.write((32767 * x.clip(-1, 1)).astype(">i2").tobytes())
                fed += 15 / 3600

    def read() -> None:
        nonlocal events
        for _ in process.stdout or ():
            events += 1

    threads = [threading.Thread(target=target, daemon=True) for target in (feed, read)]
    for thread in threads:
        thread.start()
    watched(process, lambda: fed, "hours", hours / 20)
    threads[1].join()
    print(f"{fed:.2f} hours, {events} events")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["index", "listen"])
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--hours", type=float, default=5.0)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.what == "index":
        index(args.files, args.kill)
    else:
        listen(args.hours)


if __name__ == "__main__":
    main()
