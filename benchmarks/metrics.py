"""How fast the scores of lamb.evaluation.metrics are, on one core: seconds for a test set of the size asked for.

    python benchmarks/metrics.py [--captions FILE] [--clips 5000] [--references 5] [--reference]

Captions are drawn from FILE (a table with a column `caption`), candidates and references alike; every number is the
best of three runs. `--reference` times what `lamb evaluate` does where pycocoevalcap and Java are (extra `eval`): PTB
tokenizer, METEOR, BLEU, ROUGE-L and CIDEr-D, all in one call, once, with SBERT and FENSE left out.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import csv
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamb.evaluation import bootstrap, metrics, tokenizer

ROOT = Path(__file__).parents[1]


def seconds(function: Callable[..., Any], *arguments: Any, runs: int = 3) -> float:
    """Wall time of a call, best of `runs`."""
    times = []
    for _ in range(runs):
        tokenizer._split.cache_clear()
        began = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    table = ROOT.parent / "shared" / "captions" / "audiocaps_train.csv"
    parser.add_argument("--captions", type=Path, default=table)
    parser.add_argument("--clips", type=int, default=5000)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--reference", action="store_true", help="time pycocoevalcap too")
    args = parser.parse_args()
    with args.captions.open(encoding="utf-8-sig", newline="") as file:
        pool = [row["caption"] for row in csv.DictReader(file)]
    draw = random.Random(0)
    texts = [draw.choice(pool) for _ in range(args.clips * (1 + args.references))]
    tokens = [tokenizer.tokenize(text) for text in texts]
    candidates, rest = tokens[: args.clips], tokens[args.clips :]
    references = [rest[k * args.references : (k + 1) * args.references] for k in range(args.clips)]
    per_clip = metrics.cider_d(candidates, references)[1]
    parts = {
        "tokenize": seconds(lambda: [tokenizer.tokenize(text) for text in texts]),
        "BLEU-1..4": seconds(metrics.bleu, candidates, references),
        "ROUGE-L": seconds(metrics.rouge_l, candidates, references),
        "CIDEr-D": seconds(metrics.cider_d, candidates, references),
    }
    print(f"{args.clips} clips, {args.references} references each, one core of {os.cpu_count()}")
    for name, taken in parts.items():
        print(f"{name:28}{taken:8.2f} s")
    print(f"{'all of these':28}{sum(parts.values()):8.2f} s")
    print(f"{'interval, 1,000 samples':28}{seconds(bootstrap.confidence_interval, per_clip):8.2f} s")
    print(f"{'paired test, 10,000 samples':28}{seconds(bootstrap.paired_test, per_clip, per_clip[::-1]):8.2f} s")
    if args.reference:
        time_the_reference(texts[: args.clips], texts[args.clips :], args.references)


def time_the_reference(candidates: list[str], rest: list[str], references: int) -> None:
    """Wall time of `scores.score`, and processor time of this process and of Java."""
    from lamb.evaluation import fense, reference_metrics, scores
    from lamb.evaluation.resources import Unavailable

    def left_out(*given: object) -> None:
        raise Unavailable("not timed")

    for module, name in ((fense, "Sentences"), (fense, "FluencyDetector"), (reference_metrics, "spice")):
        setattr(module, name, left_out)
    groups = [rest[k * references : (k + 1) * references] for k in range(len(candidates))]
    before, began = os.times(), time.perf_counter()
    done = scores.score([scores.Round(candidates, groups)])
    taken, after = time.perf_counter() - began, os.times()
    own, java = after.user + after.system - before.user - before.system, after.children_user - before.children_user
    print(f"{'reference implementations':28}{taken:8.2f} s (processor time: Python {own:.1f} s, Java {java:.1f} s)")
    for reason in {*done.left_out.values(), *done.notes} - {"not timed"}:
        print(f"left out: {reason}")


if __name__ == "__main__":
    main()
