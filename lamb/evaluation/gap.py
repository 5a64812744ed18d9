"""The modality gap: how far a model's audio tokens lie from the embeddings of the captions (paper, Table 2, Figure 2).

Every clip gives the audio tokens z_a from which its caption would be generated, and every caption the input embeddings
z_t of its tokens. The measures are:

- `l2`, `cosine`: mean L2 distance and cosine of the mean-pooled, raw vectors of every clip and caption [P, Table 2];
  `l2_unit`: the distance of the same vectors at unit length, `audio_norm` and `text_norm` their mean lengths [O].
  L2 distances can only be compared between models that share a language model; `cosine` and `l2_unit` between any.
- `cs_global`, `cs_token`: the aligner's divergences (`lamb.model.aligner`). Global: the pooled clips against their
  first captions, in sets of at most SET. Token: the tokens of a clip against those of a caption, averaged over all
  captions. The kernel has the defaults of `AlignerConfig` whatever the model was trained with, so that all models are
  measured alike [O]. The global divergence falls with the size of the set (the distance of a point to itself counts),
  so it differs from that of a training batch.
- `audio_to_text_r1` ... `_r10`: share of clips with one of their captions among the first 1, 5, 10 of all captions, by
  the cosine of the pooled vectors; `text_to_audio_r1` ...: share of captions whose clip is among the first [O].

Letters: S clips, C captions, N audio tokens, L caption tokens, D_llm LLM width.
"""

import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..audio import reader as audio
from ..config import AlignerConfig, DecodeConfig
from ..data.manifest import Clip, ManifestError
from ..data.scenes import Event, compose
from ..data.vocabulary import PHRASES
from ..inference.engine import Engine
from ..inference.picture import PictureError, check, save
from ..inference.recording import hear
from ..model import aligner as alignment
from ..model.lamb import LambModel
from ..model.padding import pad

RANKS = (1, 5, 10)
SET = 1000  # clips whose pooled vectors the global divergence compares at once
SHOWN = 300  # clips in a picture, evenly spaced in the list; more would hide each other
TOLERANCE = 1e-6  # similarities this close count as equal: those of the same caption differ by rounding
Vectors = Literal["unit", "raw", "both"]
AUDIO, TEXT = "#0072b2", "#d55e00"  # colours that colour-blind readers can tell apart


@dataclass(frozen=True)
class Embeddings:
    """Clips and their captions, mean-pooled in the input space of the language model, on the CPU in float32."""

    audio: Tensor  # (S, D_llm)
    text: Tensor  # (C, D_llm), the captions of one clip next to each other
    clip: Tensor  # (C,) the clip of each caption, ascending
    cs_token: float  # mean over all captions
    failed: int  # clips that cannot be read or hold no sound

    @property
    def first(self) -> Tensor:
        """(S,) the first caption of every clip."""
        return torch.searchsorted(self.clip, torch.arange(len(self.audio)))


def captioned(clips: Sequence[Clip]) -> list[Clip]:
    """`clips`; one without captions gets a caption composed from its labels, which is the same at every call.

    ManifestError for a clip that has neither a caption nor labels with phrases.
    """
    return [clip if any(map(str.strip, clip.captions)) else _composed(clip) for clip in clips]


def _composed(clip: Clip) -> Clip:
    if not clip.labels or not PHRASES.keys() >= set(clip.labels):
        wanted = f"labels {', '.join(clip.labels)} have no phrases" if clip.labels else "has neither caption nor label"
        raise ManifestError(f"clip {clip.id!r}: {wanted}; give it captions, or phrases in lamb/data/vocabulary.txt")
    rng = np.random.default_rng(zlib.crc32(clip.id.encode()))
    events = [Event(label, 0.0, 1.0, 0.0) for label in clip.labels]
    return replace(clip, captions=(compose("overlap" if len(events) > 1 else "single", events, rng),))


@torch.inference_mode()
def embed(model: LambModel, clips: Sequence[Clip]) -> Embeddings:
    """The audio tokens of `clips`, as the captioner hears them, and the tokens of all their captions.

    A clip that cannot be read or holds no sound is left out with a warning. Raises ManifestError if none is left.
    """
    yardstick = AlignerConfig()
    pooled_audio, pooled_text, owners, divergences, heard = [], [], [], [], 0
    for part, tokens in _heard(Engine(model), captioned(clips), model.config.decode):
        z_a, z_a_mask = pad(tokens)  # (S', N, D_llm), (S', N)
        texts = [(row, text) for row, clip in enumerate(part) for text in clip.captions if text.strip()]
        ids, z_t_mask = model.llm.tokenize([text for _, text in texts])  # (C', L)
        z_t, z_t_mask = model.llm.embed(ids).cpu(), z_t_mask.cpu()  # (C', L, D_llm), (C', L)
        owner = torch.tensor([row for row, _ in texts])
        divergences.append(
            alignment.cs_divergence(
                z_a[owner], z_t, z_a_mask[owner], z_t_mask, sigma=yardstick.sigma, normalise=yardstick.normalise
            )
        )
        pooled_audio.append(alignment.pool(z_a, z_a_mask))
        pooled_text.append(alignment.pool(z_t, z_t_mask))
        owners.append(owner + heard)
        heard += len(part)
    if not heard:
        raise ManifestError("none of the clips can be heard; the warnings above say why")
    return Embeddings(
        audio=torch.cat(pooled_audio),
        text=torch.cat(pooled_text),
        clip=torch.cat(owners),
        cs_token=float(torch.cat(divergences).mean()),
        failed=len(clips) - heard,
    )


def _heard(
    engine: Engine, clips: Sequence[Clip], options: DecodeConfig
) -> Iterator[tuple[list[Clip], list[np.ndarray]]]:
    """Groups of clips with the z_a (N, D_llm) of each clip; clips that cannot be heard are left out."""
    rest = iter(clips)
    for group in hear(engine, clips, options):
        found = []
        for clip, recording in zip(islice(rest, len(group)), group, strict=True):
            if recording.h_a is not None:
                found.append((clip, recording.h_a))
            else:
                problem = recording.error or f"{recording.name}: there is no sound in it; leave it out of the manifest"
                warnings.warn(f"left out: {problem}", audio.AudioWarning, stacklevel=2)
        if found:
            yield [clip for clip, _ in found], engine.audio_tokens([h_a for _, h_a in found], options.batch_size)


def measures(found: Embeddings) -> dict[str, float]:
    """All measures in the docstring of this module, with the numbers of clips, captions and clips left out."""
    a, t = found.audio[found.clip], found.text  # (C, D_llm)
    one = torch.ones(len(t), 1, dtype=torch.bool)
    raw = alignment.gap(a[:, None], one, t[:, None], one)
    unit_a, unit_t = F.normalize(found.audio, dim=-1), F.normalize(t, dim=-1)
    return {
        "clips": len(found.audio),
        "captions": len(t),
        "failed": found.failed,
        "l2": float(raw["l2"]),
        "cosine": float(raw["cosine"]),
        "l2_unit": float((unit_a[found.clip] - unit_t).norm(dim=-1).mean()),
        "audio_norm": float(found.audio.norm(dim=-1).mean()),
        "text_norm": float(t.norm(dim=-1).mean()),
        "cs_global": _cs_global(found),
        "cs_token": found.cs_token,
        **_named("audio_to_text", recall(unit_a, unit_t, torch.arange(len(unit_a)), found.clip)),
        **_named("text_to_audio", recall(unit_t, unit_a, found.clip, torch.arange(len(unit_a)))),
    }


def _named(direction: str, shares: Sequence[float]) -> dict[str, float]:
    return {f"{direction}_r{rank}": share for rank, share in zip(RANKS, shares, strict=True)}


def _cs_global(found: Embeddings) -> float:
    """The global divergence: the mean over sets of equal size, at most SET, weighted by their numbers of clips."""
    yardstick, parts = AlignerConfig(), math.ceil(len(found.audio) / SET)
    pairs = zip(found.audio.tensor_split(parts), found.text[found.first].tensor_split(parts), strict=True)
    terms = [
        len(a) * alignment.cs_divergence(a, t, sigma=yardstick.sigma, normalise=yardstick.normalise) for a, t in pairs
    ]
    return float(torch.stack(terms).sum()) / len(found.audio)


def recall(queries: Tensor, items: Tensor, query_clip: Tensor, item_clip: Tensor) -> list[float]:
    """Share of queries (Q, D) that find an item (C, D) of their own clip among the first 1, 5, 10 by inner product.

    Items of equal similarity are taken in random order, and the result is the expected share. So a model that maps
    everything to one point scores at chance, and equal captions share their rank.
    """
    found = torch.zeros(len(RANKS), dtype=torch.float64)
    for rows, clips in zip(queries.split(1024), query_clip.split(1024), strict=True):
        similarity = rows @ items.T  # (Q', C)
        right = clips[:, None] == item_clip
        best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        better = (similarity > best + TOLERANCE).sum(1)
        alike = (similarity - best).abs() <= TOLERANCE
        others, own = (alike & ~right).sum(1).double(), (alike & right).sum(1).double()
        missed = torch.ones_like(own)  # probability that none of the first `rank` items is right
        for rank in range(1, max(RANKS) + 1):
            drawn = (rank - 1 - better).clamp_min(0)  # items of equal similarity that come before this rank
            left = (others - drawn).clamp_min(0) / (others + own - drawn).clamp_min(1)
            missed = torch.where(rank > better, missed * left, missed)
            if rank in RANKS:
                found[RANKS.index(rank)] += (1 - missed).sum()
    return (found / len(queries)).tolist()


def scores(model: LambModel, clips: Sequence[Clip]) -> dict[str, float]:
    """The measures of `clips` with gap_ before their names, for the log of a training run."""
    found = measures(embed(model, clips))
    return {f"gap_{name}": value for name, value in found.items() if name not in ("clips", "captions", "failed")}


def picture(
    panels: Sequence[tuple[str, Embeddings]], file: Path, umap: bool = False, vectors: Vectors = "unit"
) -> None:
    """Draw the paper's Figure 2: clips and their first captions in two dimensions, one panel per model.

    A line joins a clip and its caption, and the audio is on the right. The PCA panels of a row share their axes unless
    one spreads ten times as far as another. Otherwise, and with UMAP, whose units mean nothing, each has its own axes.

    Args:
        panels: title and embeddings of each panel.
        vectors: "unit" scales all vectors to length 1, so that the picture compares directions, as the kernel of the
            aligner does. Raw audio and text vectors differ in length by an order of magnitude, and a picture of them
            ("raw") shows this instead of the gap. "both" draws one row of each. [O]
    """
    check(file, umap)
    from matplotlib.figure import Figure

    kinds = ("unit", "raw") if vectors == "both" else (vectors,)
    figure = Figure(figsize=(5.2 * len(panels), 5.8 * len(kinds)), layout="constrained")
    for kind, row in zip(kinds, figure.subplots(len(kinds), len(panels), squeeze=False), strict=True):
        projected = [_projected(found, umap, kind == "unit") for _, found in panels]
        reach = [float(np.abs(points).max()) * 1.05 or 1.0 for points, _ in projected]
        together = not umap and max(reach) < 10 * min(reach)
        for axes, (title, found), (points, labels), own in zip(row, panels, projected, reach, strict=True):
            _draw_panel(axes, points, max(reach) if together else own)
            shown = measures(found)
            distance = f"L2 at unit length {shown['l2_unit']:.2f}" if kind == "unit" else f"L2 {shown['l2']:.3g}"
            about = f"{distance}, cosine {shown['cosine']:.2f}; {len(points) // 2} of {shown['clips']} clips"
            axes.set_title(f"{title}\n{about}", fontsize=10)
            axes.set(xlabel=labels[0], ylabel=labels[1])
    save(figure, file)


def _draw_panel(axes: Any, points: np.ndarray, limit: float) -> None:
    """Draw audio and text points (2 n, 2) and the lines between them, up to `limit` in all directions."""
    from matplotlib.collections import LineCollection

    a, t = points.reshape(2, -1, 2)
    axes.add_collection(LineCollection(list(np.stack([a, t], 1)), colors="0.6", linewidths=0.5, alpha=0.35, zorder=1))
    axes.scatter(*a.T, s=12, color=AUDIO, alpha=0.8, linewidths=0, label="audio")
    axes.scatter(*t.T, s=12, color=TEXT, alpha=0.8, linewidths=0, marker="s", label="text")
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes.legend(loc="upper left", frameon=False)


def _projected(found: Embeddings, umap: bool, unit: bool = False) -> tuple[np.ndarray, tuple[str, str]]:
    """Centred points (2 S', 2) of the clips to show and then of their first captions, and the names of the axes."""
    chosen = torch.linspace(0, len(found.audio) - 1, min(SHOWN, len(found.audio))).long()
    points = torch.cat([found.audio[chosen], found.text[found.first[chosen]]]).double()
    points = F.normalize(points, dim=-1) if unit else points
    points -= points.mean(0)
    if umap:
        flat, labels = _umap(points.float().numpy()), ("UMAP 1", "UMAP 2")
    else:
        u, s, _ = torch.linalg.svd(points, full_matrices=False)
        u, s = F.pad(u * s, (0, 2))[:, :2], F.pad(s, (0, 2))  # a single clip spans one dimension
        share = (s.square() / s.square().sum().clamp_min(1e-30)).tolist()
        flat, labels = u.numpy(), (f"PC 1 ({share[0]:.0%} of variance)", f"PC 2 ({share[1]:.0%})")
    flat = flat - flat.mean(0)
    middle = flat.reshape(2, -1, 2).mean(1)  # of audio and of text
    return flat * np.where(middle[0] < middle[1], -1, 1), labels


def _umap(points: np.ndarray) -> np.ndarray:
    if len(points) < 6:
        raise PictureError(f"{len(points) // 2} clips are too few for UMAP; leave --umap out")
    from umap import UMAP

    # a seed makes it repeatable and single-threaded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(UMAP(n_neighbors=min(15, len(points) - 1), random_state=0).fit_transform(points))
