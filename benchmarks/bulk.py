"""What a bulk run costs besides the captions: listing, start, resuming and memory, by the number of inputs.

    python benchmarks/bulk.py [--files 10000 100000]

Makes that many empty files, times `write_list` and a finished run's `bulk` (all shards are skipped) in fresh
processes, and prints their peak memory, which should not grow with the files. No model is loaded.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def make_files(folder: Path, count: int) -> None:
    """`count` empty files, 1,000 a folder."""
    for k in range(count):
        if k % 1000 == 0:
            (folder / f"{k // 1000:05d}").mkdir(parents=True)
        (folder / f"{k // 1000:05d}" / f"{k:08d}.wav").touch()


def pretend_finished(out: Path) -> None:
    """Reports and empty captions for every shard of the plan in `out`."""
    plan = json.loads((out / "plan.json").read_text())
    for number in range(-(-plan["inputs"] // plan["shard_size"])):
        (out / "captions" / f"{number:06d}.jsonl").touch()
        report = {"captioned": plan["shard_size"], "damaged": 0, "seconds": 0.0, "failures": []}
        (out / "reports" / f"{number:06d}.json").write_text(json.dumps(report))


def child(task: str, folder: str, out: str) -> None:
    """In a process of its own: do `task`, print its seconds, the process's seconds of CPU and its peak memory in MB."""
    from lamb.bulk import run as bulk

    began = time.perf_counter()
    if task == "list":
        bulk.write_list(folder, Path(out) / "inputs.jsonl")
    else:
        bulk.bulk(folder, out, bulk.Settings(device="cpu"), workers=1)
    print(time.perf_counter() - began, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    if len(sys.argv) == 5 and sys.argv[1] == "child":
        return child(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000])
    for count in parser.parse_args().files:
        with tempfile.TemporaryDirectory() as temporary:
            folder, out = Path(temporary) / "in", Path(temporary) / "out"
            make_files(folder, count)
            for name in ("captions", "reports"):
                (out / name).mkdir(parents=True)
            for task in ("list", "resume"):
                command = [sys.executable, __file__, "child", task, str(folder), str(out)]
                if task == "resume":
                    write_plan(folder, out)
                    pretend_finished(out)
                told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                seconds, cpu, memory = map(float, told)
                print(
                    f"{count:>10,} files: {task:6} {seconds:6.2f} s, {cpu:5.2f} s of CPU, peak {memory:.0f} MB",
                    flush=True,
                )


def write_plan(folder: Path, out: Path) -> None:
    """The plan that a first start would have written."""
    from lamb.bulk import run as bulk

    bulk._plan(str(folder), out, bulk.Settings(device="cpu"), None, "jsonl", 1, False)


if __name__ == "__main__":
    main()
