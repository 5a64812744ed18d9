"""Cross-Modal Aligner: losses that bring the audio tokens z_a into the LLM's text embedding space.

From the paper (LAMB, section 3 of docs/method.md):

    L_cma = a1 * CS_global + a2 * CS_token + a3 * InfoNCE
    D(p;q) = -log( (∫pq)^2 / (∫p^2 ∫q^2) ) >= 0, zero iff p = q          (Cauchy-Schwarz divergence)
    D^ = log(1/M^2 ΣΣ k(x_i,x_j)) + log(1/N^2 ΣΣ k(y_i,y_j)) - 2 log(1/(MN) ΣΣ k(x_i,y_j))
    k(x,y) = exp(-|x-y|^2 / (2 s^2))                                 (Gaussian-kernel density estimates)

Global: one mean-pooled vector a clip, the two sets are the batch. Token: a clip's N_g audio tokens against
the L embeddings of its caption, mean over the batch. InfoNCE: symmetric, cosine, on the same pooled vectors,
with a learnable temperature. Training only.

Our choice where the paper is silent: unit-normalise inside the kernel, which leaves the length of z_a free; as an
option, raw vectors, which bring it to that of the text, and the median heuristic for s; no gradient into the text
embeddings; the scale of InfoNCE (1 / temperature) held at or below a maximum.

Letters: B batch, N_g audio tokens, L caption tokens, D_llm LLM width; M and N the sizes of two sets, D their
width.
"""

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AlignerConfig


def cs_divergence(
    x: Tensor,
    y: Tensor,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    *,
    sigma: float | Literal["median"],
    normalise: bool,
) -> Tensor:
    """D^ of the sets x (..., M, D) and y (..., N, D) with masks (..., M) and (..., N): (...,) in float32.

    Every term is a logsumexp minus log(number of valid pairs): on raw embeddings (norms of 37 against 1) the
    plain form underflows to -inf. The three terms share one s, else D^ can go negative. With "median", s^2 is
    the median squared distance over all pairs of valid points of both sets, one for each divergence, without
    gradient. An empty set is a ValueError. float64 input gives a float64 result.

    Inside, all is float64: |x|^2 + |y|^2 - 2 x·y is one matmul where direct differences take (..., M, N, D)
    of memory (0.5 GB a term for 32 clips of LLaMA-2), but it cancels: at norms of 1e3 it is off by 0.1 in
    float32 (more under TF32), by 1e-9 in float64, and the matrices are too small for float64 to be felt.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x_mask = x.new_ones(x.shape[:-1], dtype=torch.bool) if x_mask is None else x_mask
    y_mask = y.new_ones(y.shape[:-1], dtype=torch.bool) if y_mask is None else y_mask
    _require_valid(x_mask)
    _require_valid(y_mask)
    with torch.autocast(x.device.type, enabled=False):
        # Padding may hold anything, even NaN, whose gradient would survive a mask that is applied later.
        x = x.double().masked_fill(~x_mask[..., None], 0)
        y = y.double().masked_fill(~y_mask[..., None], 0)
        if normalise:
            x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
        xx = _squared_distances(x, x, x_mask, x_mask)  # (..., M, M)
        yy = _squared_distances(y, y, y_mask, y_mask)  # (..., N, N)
        xy = _squared_distances(x, y, x_mask, y_mask)  # (..., M, N)
        variance = _median(xx, yy, xy) if sigma == "median" else x.new_tensor(sigma**2)
        divergence = (
            _log_mean_kernel(xx, variance) + _log_mean_kernel(yy, variance) - 2 * _log_mean_kernel(xy, variance)
        )
        return divergence.to(dtype)


def info_nce(a: Tensor, t: Tensor, scale: Tensor) -> Tensor:
    """-log softmax(scale * cos) of the true pairs of a and t (B, D), mean of both directions: a scalar."""
    with torch.autocast(a.device.type, enabled=False):
        a, t = F.normalize(_float(a), dim=-1), F.normalize(_float(t), dim=-1)
        logits = scale * a @ t.mT  # (B, B), row = audio, column = text
        target = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target)) / 2


def pool(z: Tensor, mask: Tensor) -> Tensor:
    """Mean of the valid tokens: z (B, N, D), mask (B, N) -> (B, D), float32."""
    _require_valid(mask)
    total = _float(z).masked_fill(~mask[..., None], 0).sum(1)  # (B, D)
    return total / mask.sum(1, keepdim=True)


def gather(x: Tensor) -> Tensor:
    """x (B, ...) of every process, one after the other; x itself in a single process. B must be the same in all.

    Every process computes the same term from it, with a gradient into its own x only, times the number of processes:
    the average that DDP forms is then the gradient of the term, as one process with the whole batch would have it.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    if x.requires_grad:
        x = x.clone()  # the hook is for this use of x alone
        x.register_hook(lambda gradient: gradient * len(parts))
        parts[dist.get_rank()] = x
    return torch.cat(parts)


@torch.no_grad()
def gap(z_a: Tensor, z_a_mask: Tensor, z_t: Tensor, z_t_mask: Tensor) -> dict[str, Tensor]:
    """The modality gap of the paper's Table 2: mean L2 distance and cosine of the pooled, raw pairs."""
    a, t = pool(z_a, z_a_mask), pool(z_t, z_t_mask)  # (B, D_llm)
    return {"l2": (a - t).norm(dim=-1).mean(), "cosine": F.cosine_similarity(a, t, dim=-1).mean()}


class CrossModalAligner(nn.Module):
    """The terms of L_cma by name, unweighted; `weights` holds a1, a2, a3 under the same names.

    A term of weight 0 is neither computed nor named.
    """

    def __init__(self, config: AlignerConfig) -> None:
        super().__init__()
        weights = {"cs_global": config.global_weight, "cs_token": config.token_weight, "infonce": config.infonce_weight}
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.kernel: dict[str, Any] = {"sigma": config.sigma, "normalise": config.normalise}
        self.max_scale = config.max_scale
        if "infonce" in self.weights:
            self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def forward(self, z_a: Tensor, z_a_mask: Tensor, z_t: Tensor, z_t_mask: Tensor) -> dict[str, Tensor]:
        """z_a (B, N_g, D_llm), the caption's embeddings z_t (B, L, D_llm), their masks -> scalars by name.

        The global term and InfoNCE are over the clips of all processes.
        """
        z_t = z_t.detach()  # the audio moves to the text, not the text to the audio
        a, t = gather(pool(z_a, z_a_mask)), gather(pool(z_t, z_t_mask))  # (processes * B, D_llm)
        terms = {}
        if "cs_global" in self.weights:
            terms["cs_global"] = cs_divergence(a, t, **self.kernel)
        if "cs_token" in self.weights:
            masks = z_a_mask, z_t_mask
            per_clip = cs_divergence(z_a, z_t, *masks, **self.kernel)  # (B,)
            terms["cs_token"] = per_clip.mean()
        if "infonce" in self.weights:
            # The parameter itself is held at the limit: a clamp in the graph has no gradient back.
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(self.max_scale))
            terms["infonce"] = info_nce(a, t, self.log_scale.exp())
        return terms


def _squared_distances(x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor) -> Tensor:
    """|x_i - y_j|^2, infinite where either is padding: (..., M, N)."""
    norms = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    distances = (norms - 2 * x @ y.mT).clamp_min(0)
    return distances.masked_fill(~(x_mask[..., :, None] & y_mask[..., None, :]), torch.inf)


def _log_mean_kernel(distances: Tensor, variance: Tensor) -> Tensor:
    """log of the mean of k over the valid pairs: (..., M, N) -> (...,)."""
    count = distances.isfinite().sum((-2, -1)).to(distances.dtype)
    return (-distances / (2 * variance[..., None, None])).logsumexp((-2, -1)) - count.log()


@torch.no_grad()
def _median(xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    """Median squared distance between two valid points of the union, every pair counted once: (...,)."""
    size_x, size_y = xy.shape[-2:]
    above_x = torch.triu_indices(size_x, size_x, offset=1, device=xx.device)
    above_y = torch.triu_indices(size_y, size_y, offset=1, device=yy.device)
    within = xx[..., above_x[0], above_x[1]], yy[..., above_y[0], above_y[1]]
    distances = torch.cat([*within, xy.flatten(-2)], dim=-1)  # (..., pairs)
    median = distances.masked_fill(distances.isinf(), torch.nan).nanmedian(dim=-1).values
    return median.clamp_min(1e-12)  # when all points are equal, any s will do


def _float(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _require_valid(mask: Tensor) -> None:
    if not mask.any(-1).all():
        raise ValueError("a clip or a caption has no valid token: drop empty ones before the aligner")
