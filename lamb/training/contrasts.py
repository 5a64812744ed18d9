"""The answers to the questions of an ablation that were declared before its runs (`contrasts` of the recipe). [O]

A question is whether a variant predicts the captions of held-out clips worse than the one it is compared with: the
difference of their cross entropies in nats a token, between runs of the same seed on the same clips. Its interval is a
bootstrap over seeds and, within each draw, over clips, at the level 1 - 0.05 / (number of questions) (Bonferroni). The
answer is "worse" or "better" where 0 lies outside, "no difference" where the interval lies within the margin that
counts as none (an equivalence test), and "not resolved" otherwise.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config import AblationConfig, ContrastsConfig

SAMPLES = 10_000


def answers(config: AblationConfig, folders: Mapping[tuple[str, int], Path]) -> dict[str, dict[str, Any]]:
    """The answer to each question by its label; those without two common seeds are left out.

    Args:
        folders: of the runs that are done, by variant and seed; each holds predictions.jsonl.
    """
    asked, found = config.contrasts, {}
    assert asked is not None
    for label, variant in asked.rows.items():
        seeds = [s for v, s in folders if v == variant and (asked.against, s) in folders]
        if len(seeds) > 1:
            pairs = [[_read(folders[v, s]) for s in seeds] for v in (variant, asked.against)]
            nats, tokens = np.array(pairs).transpose(3, 0, 1, 2)  # (2, seeds, clips) each
            found[label] = answer(nats[0] - nats[1], tokens[0, 0], asked.margin, len(asked.rows))
    return found


def answer(differences: np.ndarray, tokens: np.ndarray, margin: float, questions: int) -> dict[str, Any]:
    """differences (seeds, clips) in nats, tokens (clips,) -> mean difference a token, its interval and the answer."""
    rng, (seeds, clips) = np.random.default_rng(0), differences.shape
    means = np.empty(SAMPLES)
    for k in range(SAMPLES):
        drawn = rng.integers(0, clips, clips)
        counts = np.bincount(rng.integers(0, seeds, seeds), minlength=seeds)  # how often each seed is drawn
        means[k] = (counts @ differences[:, drawn].sum(1)) / (seeds * tokens[drawn].sum())
    level = 0.05 / questions
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    verdict = "not resolved"
    if low > 0 or high < 0:
        verdict = "worse" if low > 0 else "better"
    elif -margin < low and high < margin:
        verdict = "no difference"
    mean = differences.sum() / (seeds * tokens.sum())
    return {"mean": float(mean), "low": float(low), "high": float(high), "seeds": seeds, "answer": verdict}


def markdown(asked: ContrastsConfig, found: Mapping[str, Mapping[str, Any]]) -> str:
    """What `answers` returned, as a Markdown table."""
    level = 100 * (1 - 0.05 / len(asked.rows))
    lines = [
        f"**Declared before the runs: cross entropy against “{asked.against}”, nats a token**",
        "",
        f"|  | seeds | difference, {level:.1f} % interval | answer (margin {asked.margin:g}) |",
        "|---|---:|---:|---|",
    ]
    for label in asked.rows:
        if (o := found.get(label)) is None:
            lines.append(f"| {label} | – | – | too few runs |")
        else:
            interval = f"{o['mean']:+.4f} [{o['low']:+.4f}, {o['high']:+.4f}]"
            lines.append(f"| {label} | {o['seeds']} | {interval} | {o['answer']} |")
    return "\n".join(lines)


def _read(folder: Path) -> list[tuple[float, float]]:
    """(nats, tokens) of each clip, in the order of the clips, which is that of every run."""
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return [(row["nats"], row["tokens"]) for row in rows]
