"""What can be told from an encoder's feature maps: a small classifier, trained on those of labelled recordings.

    python benchmarks/probe.py ../shared/teacher/efficientat_mn04_as.safetensors
    python benchmarks/probe.py FOLDER                an encoder that `lamb train` (stage distill) made

It bounds what better label heads, or captions, could gain from the same encoder and the same recordings. Every
recording is heard as it is, up to 10 s, by a network whose weights stay. Its feature map (D, H, N) becomes

    mean    the mean over frequency and time (D): what pooled tokens hold
    rows    the mean over time of each row, and the maximum over time of the mean over frequency ((H + 1) D)

and a linear layer, or one with a hidden layer of 512, learns the labels from the training part of all folders. Printed
are top-1 and mean average precision over labels on the development part of each folder, and of all.
"""

import argparse
from collections import Counter
from itertools import chain
from pathlib import Path

import torch
from encoder import SHARED, average_precision
from torch import Tensor, nn
from torch.nn import functional as F

from lamb.data import sources
from lamb.data.loader import pad, recordings
from lamb.data.manifest import Clip
from lamb.model.encoders.efficientat import EfficientAT

SECONDS = 10
STEPS, BATCH, LR = 1000, 256, 3e-3


@torch.no_grad()
def features(encoder: EfficientAT, clips: list[Clip]) -> tuple[dict[str, Tensor], list[tuple[str, int]]]:
    """Features by name, (clips, ...) each, and the label and the number of the source of every clip."""
    found, items = [], []
    for label, by_source in recordings(clips, encoder.sample_rate).items():
        for number, source in enumerate(by_source):
            items += [((label, number), x.samples[: SECONDS * encoder.sample_rate]) for x in source]
    items.sort(key=lambda item: len(item[1]))
    for first in range(0, len(items), 32):
        waveform, mask = pad([x.astype("float32") / 32767 for _, x in items[first : first + 32]])
        maps, valid = encoder.encode(*encoder.log_mel(waveform, mask))  # (B, D, H, N), zero in padding; (B, N)
        rows = maps.float().sum(3) / valid.sum(1)[:, None, None]  # (B, D, H)
        loudest = maps.float().mean(2).masked_fill(~valid[:, None], -torch.inf).amax(2)  # (B, D)
        found.append((rows.mean(2), torch.cat([rows.flatten(1), loudest], 1)))
    mean, both = (torch.cat(parts) for parts in zip(*found, strict=True))
    return {"mean": mean, "rows": both}, [key for key, _ in items]


def probe(x: Tensor, target: Tensor, weights: Tensor, labels: int, hidden: int) -> nn.Module:
    """A classifier trained on features x (clips, D) and their labels (clips,), drawn with `weights` (clips,)."""
    torch.manual_seed(0)
    inner = [nn.Linear(x.shape[1], hidden), nn.Hardswish(), nn.Dropout(0.3)] if hidden else []
    net = nn.Sequential(nn.Dropout(0.3), *inner, nn.Linear(hidden or x.shape[1], labels))
    optimiser = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        chosen = torch.multinomial(weights, BATCH)
        loss = F.cross_entropy(net(x[chosen]), target[chosen], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def scores(found: Tensor, wanted: list[str], labels: list[str]) -> str:
    """Top-1 and mean average precision of probabilities (clips, labels) against the labels of the clips."""
    known = torch.tensor([labels.index(label) if label in labels else -1 for label in wanted])  # (clips,)
    right = (found.argmax(1) == known)[known >= 0].float().mean()
    precisions = [average_precision(found[:, k], known == k) for k in sorted(set(known.tolist()) - {-1})]
    return f"top-1 {right:.3f}, mAP {sum(precisions) / len(precisions):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--sounds", type=Path, nargs="+", default=[SHARED / "sounds", SHARED / "sounds-more"])
    args = parser.parse_args()
    encoder = EfficientAT.from_pretrained(args.encoder).eval()
    training, development = sources.split_sounds(*args.sounds)
    x, keys = features(encoder, training)
    labels = sorted({label for label, _ in keys})
    target = torch.tensor([labels.index(label) for label, _ in keys])
    # as in training: a label by the root of its recordings, every source of it as often
    count, clips = Counter(label for label, _ in keys), Counter(keys)
    sourced = Counter(label for label, _ in clips)
    weights = torch.tensor([count[key[0]] ** 0.5 / sourced[key[0]] / clips[key] for key in keys])
    held = {}
    for folder in args.sounds:
        own = {clip.id for clip in sources.sounds(folder)}
        held[folder.name] = features(encoder, [clip for clip in development if clip.id in own])
    for name in x:
        mean, spread = x[name].mean(0), x[name].std(0) + 1e-3
        for hidden in (0, 512):
            net = probe((x[name] - mean) / spread, target, weights, len(labels), hidden)
            with torch.no_grad():
                found = {key: net((y[name] - mean) / spread).softmax(1) for key, (y, _) in held.items()}
            wanted = {key: [label for label, _ in own] for key, (_, own) in held.items()}
            found["all"], wanted["all"] = torch.cat(list(found.values())), [*chain(*wanted.values())]
            shown = "; ".join(f"{key}: {scores(found[key], wanted[key], labels)}" for key in found)
            print(f"{name}, hidden {hidden}: {shown}", flush=True)


if __name__ == "__main__":
    main()
