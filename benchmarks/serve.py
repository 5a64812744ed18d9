"""`lamb serve` under load: 64 clients for a minute on loopback, against `lamb caption` on the same clips.

    python benchmarks/serve.py [--sounds FOLDER] [--model NAME] [--clients N] [--seconds S]

The real command in a process of its own, clips of 5 s as wav; each client sends the next one as soon as it has its
answer. The clients run on the same machine and take their share of it: processor time is told for each side.
"""

import argparse
import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from captioner import LAMB, ROOT, make_clips, seconds


def load(port: int, clips: list[bytes], clients: int, length: float) -> tuple[list[float], Counter[str]]:
    """Seconds of every answer, and what the answers were, of `clients` that ask for `length` seconds."""
    times: list[float] = []
    said: Counter[str] = Counter()
    end = time.perf_counter() + length

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for clip in itertools.islice(itertools.cycle(clips), number * len(clips) // clients, None):
            if (began := time.perf_counter()) >= end:
                return
            try:
                connection.request("POST", "/v1/caption", clip)
                answer = connection.getresponse()
                answer.read()
                said[str(answer.status)] += 1
                times.append(time.perf_counter() - began)
            except OSError as error:
                said[type(error).__name__] += 1
                connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, said


def spent(*processes: int) -> float:
    """Seconds of processor time that processes have taken so far. Linux only."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in processes]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")  # user and system


def captioned(port: int) -> tuple[float, float]:
    """Clips and batches so far."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    numbers = dict(line.rsplit(" ", 1) for line in connection.getresponse().read().decode().splitlines())
    connection.close()
    return float(numbers["lamb_batch_clips_sum"]), float(numbers["lamb_batch_clips_count"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = ROOT.parent / "shared" / "sounds" / "audio"
    parser.add_argument("--sounds", type=Path, default=shared if shared.exists() else ROOT / "samples")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        make_clips(args.sounds, Path(temporary))
        files = sorted(Path(temporary).iterdir())
        one, _ = seconds([*LAMB, "caption", str(files[0]), "--model", args.model])
        whole, _ = seconds([*LAMB, "caption", temporary, "--model", args.model, "--output", os.devnull])
        clips = [file.read_bytes() for file in files]
    offline = (len(clips) - 1) / (whole - one)
    command = [*LAMB, "serve", "--port", "0", "--model", args.model]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        port = int(json.loads(process.stderr.readline())["url"].rpartition(":")[2])
        threading.Thread(target=process.stderr.read).start()  # else its log would fill the pipe
        load(port, clips, 8, 3)
        decoders = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        parts = {"service": [process.pid], "decoders": list(decoders), "clients": [os.getpid()]}
        before = {part: spent(*pids) for part, pids in parts.items()}
        clips_before, batches_before = captioned(port)
        began = time.perf_counter()
        times, said = load(port, clips, args.clients, args.seconds)
        online = len(times) / (time.perf_counter() - began)
        taken = {part: 1000 * (spent(*pids) - before[part]) / max(1, len(times)) for part, pids in parts.items()}
        clips_after, batches_after = captioned(port)
        process.terminate()
    if not times:
        sys.exit(f"no answer: {dict(said)}")
    cuts = statistics.quantiles(times, n=100)
    together = (clips_after - clips_before) / (batches_after - batches_before)
    print(f"sounds: {args.sounds}, cores: {os.cpu_count()}")
    print(f"{args.clients} clients for {args.seconds:g} s, answers by status: {dict(said)}")
    print(f"  p50                        {cuts[49]:6.2f} s")
    print(f"  p99                        {cuts[98]:6.2f} s")
    print(f"  clips in a batch           {together:6.1f}")
    print(f"  clips a second             {online:6.1f}")
    print(f"  ms of processor time a clip: {', '.join(f'{part} {ms:.1f}' for part, ms in taken.items())}")
    print(f"lamb caption, start-up off   {offline:6.1f} clips a second")
    print(f"  share of it that is served {online / offline:6.2f}")


if __name__ == "__main__":
    main()
