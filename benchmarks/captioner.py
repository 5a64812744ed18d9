"""How fast `lamb caption` is: start-up, throughput and memory, with the bundled model on this machine's CPU.

    python benchmarks/captioner.py [--sounds FOLDER] [--model NAME]

Runs the real command in fresh processes; every number is the best of three runs (the median is shown beside it).
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).parents[1]
LAMB = [sys.executable, "-m", "lamb"]
BASELINE = [sys.executable, "-c", "import torch, transformers; from transformers import LlamaForCausalLM"]


def seconds(command: list[str], runs: int = 3) -> tuple[float, float]:
    """Wall time of `command`, best and median of `runs`."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return min(times), statistics.median(times)


def make_clips(sounds: Path, folder: Path, count: int = 200, length: float = 5.0) -> float:
    """`count` wav files of `length` seconds from recordings in `sounds`, repeated to length; their total duration."""
    files = sorted(path for path in sounds.iterdir() if path.suffix in (".ogg", ".flac", ".wav"))
    if not files:
        sys.exit(f"{sounds}: no recordings")
    for k in range(count):
        samples, rate = soundfile.read(files[k * len(files) // count], dtype="float32")
        soundfile.write(folder / f"{k:03d}.wav", np.resize(samples, int(length * rate)), rate)  # resize repeats
    return count * length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = ROOT.parent / "shared" / "sounds" / "audio"
    parser.add_argument("--sounds", type=Path, default=shared if shared.exists() else ROOT / "samples")
    parser.add_argument("--model", default="tiny")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        total = make_clips(args.sounds, folder)
        one = str(folder / "000.wav")
        help_best, help_median = seconds([*LAMB, "--help"])
        base_best, base_median = seconds(BASELINE)
        one_best, one_median = seconds([*LAMB, "caption", one, "--model", args.model])
        all_best, all_median = seconds([*LAMB, "caption", temporary, "--model", args.model, "--output", os.devnull])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"sounds: {args.sounds}, cores: {os.cpu_count()}")
    print(f"lamb --help                     {help_best:6.2f} s   (median {help_median:.2f})")
    print(f"import torch, LlamaForCausalLM  {base_best:6.2f} s   (median {base_median:.2f})")
    print(f"lamb caption one.wav            {one_best:6.2f} s   (median {one_median:.2f})")
    print(f"  times the import              {one_best / base_best:6.2f}     (median {one_median / base_median:.2f})")
    print(f"lamb caption, 200 clips of 5 s  {all_best:6.2f} s   (median {all_median:.2f})")
    print(f"  times real time, all of it    {total / all_best:6.1f}     (median {total / all_median:.1f})")
    rest = all_best - one_best
    print(f"  times real time, start-up off {(total - 5) / rest:6.1f}")
    print(f"peak memory of a run            {peak:6.0f} MB")


if __name__ == "__main__":
    main()
