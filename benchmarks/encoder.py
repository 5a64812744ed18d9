"""How well an encoder that `lamb train` (stage distill) made tells recordings apart, and what it costs.

    python benchmarks/encoder.py FOLDER [--sounds FOLDER ...] [--seed N]

Top-1 and mean average precision of its clip head on the development recordings of each folder of labelled recordings,
and the share of pairs of two at once whose labels are its best two. The time is the processor's for one clip of 5 s.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamb.data import sources
from lamb.data.loader import pad, recordings
from lamb.evaluation.probes import Probe, probes
from lamb.model.encoders.efficientat import EfficientAT

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@torch.no_grad()
def tags(encoder: EfficientAT, waveforms: Sequence[np.ndarray]) -> Tensor:
    """Probabilities of the labels, (clips, labels); clips of similar length are encoded together."""
    order = sorted(range(len(waveforms)), key=lambda k: len(waveforms[k]))
    found: dict[int, Tensor] = {}
    for first in range(0, len(order), 32):
        part = order[first : first + 32]
        found.update(zip(part, encoder.tag(*encoder(*pad([waveforms[k] for k in part]))), strict=True))
    return torch.stack([found[k] for k in range(len(waveforms))])


def average_precision(scores: Tensor, wanted: Tensor) -> float:
    """Mean of the precision at each clip that has the label: scores (clips,), wanted (clips,) bool."""
    hits = wanted[scores.argsort(descending=True)].float()
    return float((hits.cumsum(0) / torch.arange(1, len(hits) + 1) * hits).sum() / hits.sum())


def milliseconds(encoder: Any, seconds: float = 5, runs: int = 20) -> float:
    """Processor time of one clip, best of `runs`: other work on the machine counts little in it."""
    clip = torch.randn(1, int(seconds * encoder.sample_rate))
    mask, times = torch.ones_like(clip, dtype=torch.bool), []
    with torch.no_grad():
        for _ in range(runs):
            began = time.process_time()
            encoder(clip, mask)
            times.append(time.process_time() - began)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--sounds", type=Path, nargs="+", default=[SHARED / "sounds", SHARED / "sounds-more"])
    parser.add_argument("--seed", type=int, default=11, help="of the pairs; choose with others than you report")
    args = parser.parse_args()
    torch.set_num_threads(1)
    encoder = EfficientAT.from_pretrained(args.encoder).eval()
    index = {label: k for k, label in enumerate(encoder.labels)}
    pairs: list[Probe] = []
    for folder in args.sounds:
        training, development = (
            [clip for clip in sources.sounds(folder) if clip.split == split] for split in ("train", "development")
        )
        own = torch.tensor([label in {clip.labels[0] for clip in training} for label in encoder.labels])
        bank = recordings([clip for clip in development if clip.labels[0] in index], encoder.sample_rate)
        found = [(label, x.samples.astype("float32") / 32767) for label, by in bank.items() for s in by for x in s]
        truth = torch.tensor([index[label] for label, _ in found])
        scores = tags(encoder, [x for _, x in found])
        precision = np.mean([average_precision(scores[:, k], truth == k) for k in truth.unique()])
        among = scores.masked_fill(~own, 0).argmax(1)
        print(
            f"{folder}: {len(found)} recordings, {len(truth.unique())} labels: "
            f"top-1 {float((scores.argmax(1) == truth).float().mean()):.3f} of all labels, "
            f"{float((among == truth).float().mean()):.3f} of this folder's; "
            f"top-5 {float((scores.topk(5).indices == truth[:, None]).any(1).float().mean()):.3f}; mAP {precision:.3f}",
            flush=True,
        )
        if not pairs:
            made = probes(development, encoder.sample_rate, [args.seed])
            pairs = [probe for probe in made if probe.kind == "overlap"]
    best = tags(encoder, [probe.waveform(encoder.sample_rate) for probe in pairs]).topk(2).indices
    both = [{encoder.labels[k] for k in row} == set(probe.labels) for row, probe in zip(best, pairs, strict=True)]
    print(f"two at once, {len(pairs)} pairs of seed {args.seed}: both the best two in {np.mean(both):.3f}")
    parameters = sum(p.numel() for p in encoder.parameters())
    print(f"{parameters / 1e6:.2f} M parameters; 5 s in {milliseconds(encoder):.1f} ms")


if __name__ == "__main__":
    main()
