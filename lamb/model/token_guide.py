"""Token Guide: the audio tokens z_a score every entry of the vocabulary; the scores steer the LLM's logits.

From the paper (LAMB, section 4 of docs/method.md): a score for every vocabulary entry from its squared L2
distance to z_a in the LLM's input embedding space, closer meaning higher, added to the logits of every
decoding step with a learnable strength beta. No external module. The paper's Table 3 also compares L1 and
cosine.

Our choice where the paper is silent:

    mean   score_v = -mean_i |z_i - e_v|^2   (l2; l1 likewise),   mean_i cos(z_i, e_v)   (cosine)
    min    the closest token alone:  -min_i |z_i - e_v|^2,  max_i cos(z_i, e_v)
    bias = beta * (score - mean_v score): the softmax does not see the centring, and the numbers stay small

The squared distance prefers short embeddings: -|e_v|^2 is the same for every clip, and only 2 z̄·e_v tells clips
apart. Which of the two counts depends on the length of z. Around SmolLM2, with a caption's own embeddings for z, the
caption's tokens have a median rank of 4,000 among 49,152; with z five times as long, of 16. The paper's numbers speak
for a long z: an L2 distance of 10.9 at a cosine of 0.58 is a |z| of some ten times the text's. So we calibrate beta
by the part of the scores that differs between clips (`initial_beta`), at the length that z starts with
(`AdapterConfig.scale`).

With z̄ = mean_i z_i, mean_i |z_i - e_v|^2 = mean_i |z_i|^2 - 2 z̄·e_v + |e_v|^2: l2 / mean is one
matrix-vector product a clip, and so is cosine / mean. With beam search the bias must enter before the
log-softmax.

Letters: B batch, N audio tokens, V vocabulary, D LLM width; e_v row v of the embedding matrix.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import GuideConfig

Distance = Literal["l2", "l1", "cosine"]
Reduce = Literal["mean", "min"]

# Elements of the largest temporary: 128 MB in float32, where a float32 copy of LLaMA-2's matrix takes 0.5 GB.
_CHUNK = 2**25


def guide_scores(z_a: Tensor, mask: Tensor, embedding_matrix: Tensor, *, distance: Distance, reduce: Reduce) -> Tensor:
    """z_a (B, N, D), mask (B, N), embedding_matrix (V, D) of any dtype -> scores (B, V) in float32.

    Every clip needs a valid token. A large matrix is read in chunks of rows, each cast on its own and, in
    training, computed again in the backward pass: neither a float32 copy of it nor (B, N, V, D) ever exists.
    """
    with torch.autocast(z_a.device.type, enabled=False):
        z = z_a.to(torch.promote_types(z_a.dtype, torch.float32))
        if distance == "cosine":
            z = F.normalize(z, dim=-1)
        squares = z.square().sum(-1)  # (B, N)
        if reduce == "mean" and distance != "l1":
            # The score is linear in z_i and |z_i|^2: their means over a clip stand for its tokens.
            weight = mask.to(z.dtype) / mask.sum(1, keepdim=True)  # (B, N)
            z = torch.einsum("bn,bnd->bd", weight, z)[:, None]  # (B, 1, D)
            squares = (weight * squares).sum(1, keepdim=True)  # (B, 1)
            mask = mask.any(1, keepdim=True)  # (B, 1)
        batch, tokens, dim = z.shape
        chunks = embedding_matrix.split(max(1, _CHUNK // max(dim, batch * tokens)))
        args = [(z, squares, mask, rows, distance, reduce) for rows in chunks]
        if torch.is_grad_enabled() and len(chunks) > 1:
            parts = [checkpoint(_score_rows, *a, use_reentrant=False, preserve_rng_state=False) for a in args]
        else:
            parts = [_score_rows(*a) for a in args]
        return torch.cat(parts, dim=-1)  # (B, V)


class TokenGuide(nn.Module):
    """bias = beta * centred scores, float32: once a clip, added to the logits of every step.

    The embedding matrix is not detached: a frozen one gets no gradient anyway, one trained along learns from the guide
    too.
    """

    def __init__(self, config: GuideConfig) -> None:
        super().__init__()
        self.config = config
        self.beta = nn.Parameter(torch.tensor(1.0 if config.beta is None else config.beta, dtype=torch.float32))

    @torch.no_grad()
    def initialise(self, embedding_matrix: Tensor, norm: float) -> None:
        """Set a beta that the config leaves open by the LLM's embedding_matrix (V, D), for z_a of this norm. [O]"""
        if self.config.beta is None:
            self.beta.fill_(initial_beta(embedding_matrix, norm, self.config))

    def forward(self, z_a: Tensor, mask: Tensor, embedding_matrix: Tensor) -> Tensor:
        """z_a (B, N, D), mask (B, N), embedding_matrix (V, D) -> bias (B, 1, V), of the first step."""
        distance, reduce = self.config.distance, self.config.reduce
        scores = guide_scores(z_a, mask, embedding_matrix, distance=distance, reduce=reduce)[:, None]  # (B, 1, V)
        return self.beta * (scores - scores.mean(-1, keepdim=True))

    @property
    def residual(self) -> float:
        """What every generated embedding adds to 2 beta z̄ in decoding: nothing, in the paper."""
        return 0.0

    def steps(self, bias: Tensor, tokens: Tensor, embedding_matrix: Tensor, last: bool = False) -> Tensor:
        """The bias (B, 1 or L + 1, V) of every step along caption embeddings `tokens` (B, L, D) and of the end.

        With `last`, of the step after all tokens alone: (B, 1, V). Every step has the same bias in the paper.
        """
        return bias


@torch.no_grad()
def initial_beta(embedding_matrix: Tensor, norm: float, config: GuideConfig) -> float:
    """The beta at which what differs between clips in beta * score has the standard deviation `config.spread` over the
    vocabulary (our choice).

    Embedding scales differ by orders of magnitude between LLMs. Up to 64 evenly spaced rows, scaled to a mean norm of
    `norm`, stand for the clips. A bias that is wrong costs about spread^2 / 2 nats a token, so an untrained adapter
    does little harm, while the right tokens already gain.
    """
    rows = len(embedding_matrix)
    picks = torch.linspace(0, rows - 1, min(64, rows), device=embedding_matrix.device).long()
    z_a = embedding_matrix[picks].float()[:, None]  # (64, 1, D): clips of one token
    z_a = z_a * (norm / z_a.norm(dim=-1).mean().clamp_min(1e-12))
    mask = torch.ones(z_a.shape[:2], dtype=torch.bool, device=embedding_matrix.device)
    scores = guide_scores(z_a, mask, embedding_matrix, distance=config.distance, reduce=config.reduce)  # (64, V)
    spread = (scores - scores.mean(0)).std(-1).mean().item()  # of what is not common to all clips
    return config.spread / spread if spread > 1e-6 * norm else 1.0  # equal rows have nothing to steer


def _score_rows(z: Tensor, squares: Tensor, mask: Tensor, rows: Tensor, distance: Distance, reduce: Reduce) -> Tensor:
    """Scores of some rows (R, D) of the embedding matrix: (B, R). `squares` are |z_i|^2, (B, N)."""
    e = rows.to(z.dtype)
    if distance == "l2":
        lengths = torch.linalg.vector_norm(e, dim=-1)  # (R,)
        scores = 2 * _products(z, e) - lengths.square() - squares[..., None]  # (B, N, R)
    elif distance == "l1":
        points = z.flatten(0, 1)  # all tokens as one list: cdist would copy e for every clip
        distances: Tensor = torch.cdist(points, e, p=1) if z.is_cpu else _L1.apply(points, e)  # (B * N, R)
        scores = -distances.unflatten(0, mask.shape)  # (B, N, R)
    else:
        scores = _products(z, F.normalize(e, dim=-1))  # (B, N, R)
    if reduce == "min":
        return scores.masked_fill(~mask[..., None], -torch.inf).amax(1)
    return scores.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)


def _products(z: Tensor, e: Tensor) -> Tensor:
    """z (B, N, D), e (R, D) -> (B, N, R). As one product of matrices: `matmul` may copy e for every clip."""
    return (z.flatten(0, 1) @ e.T).unflatten(0, z.shape[:2])


class _L1(torch.autograd.Function):
    """cdist(x, e, p=1): x (P, D), e (R, D) -> (P, R), with a backward pass that goes over few rows of e at a time.

    PyTorch's own holds every single difference on a GPU, (P, R, D): 0.5 TB for 32 clips of LLaMA-2. On a CPU it holds
    none, and is the faster one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, e: Tensor) -> Tensor:
        ctx.save_for_backward(x, e)
        return torch.cdist(x, e, p=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,), (x, e) = gradients, ctx.saved_tensors  # (P, R), (P, D), (R, D)
        of_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        of_e = torch.zeros_like(e) if ctx.needs_input_grad[1] else None
        rows = max(1, _CHUNK // x.numel())
        for k in range(0, len(e), rows):
            part = gradient[:, k : k + rows]  # (P, rows)
            signs = (x[:, None] - e[k : k + rows]).sign_()  # (P, rows, D)
            if of_x is not None:
                of_x += torch.bmm(part[:, None], signs)[:, 0]
            if of_e is not None:
                of_e[k : k + rows] = -torch.einsum("pr,prd->rd", part, signs)
        return of_x, of_e
