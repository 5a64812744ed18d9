"""Adapters: from the encoder's tokens h_a to the tokens z_a that the LLM reads.

From the paper (LAMB, section 2 of docs/method.md), the Two-Stream Adapter:

    semantic   h_s = LN(MHA(Q_s, h_a) + Q_s)                    N_s learnable queries
    temporal   h_t = LN(MHA(Q_t, GRU(Conv1D(h_a))) + Q_t)       N_t learnable queries
    fusion     z_a = Linear(LN(MHA(Q_g, [h_s ; h_t]) + Q_g))    N_g learnable queries, projected to D_llm
    MHA(Q, h) = softmax(Q W_Q (h W_K)^T / sqrt(d_head)) h W_V   no feed-forward layer

Our choice where the paper is silent: heads are concatenated with no output projection and no biases (the
formula has none); the convolutions have several odd kernels, D -> D each, concatenated, mapped back to D by a
1x1, then GELU; the GRU has D/2 units per direction; queries start with the standard deviation `query_std`.
Padding is masked everywhere, so that a clip has the same z_a alone and in a padded batch. `LinearProjector`
and `QFormer` are the baselines that the paper compares with, their details ours.

Every adapter maps (h_a, mask) to (z_a, mask of z_a) and ends in a linear layer named `out`.
Letters: B batch, N_a encoder tokens, D encoder width, N_s / N_t / N_g query counts, D_llm LLM width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..config import AdapterConfig


class QueryAttention(nn.Module):
    """LN(MHA(Q, h) + Q): learnable queries Q that read from h. The block of all three modules."""

    def __init__(self, config: AdapterConfig, dim: int, queries: int) -> None:
        super().__init__()
        _require_heads(dim, config.head_dim)
        self.head_dim = config.head_dim
        self.queries = nn.Parameter(config.query_std * torch.randn(queries, dim))
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        batch = h.shape[0]
        q = self._heads(self.query(self.queries).expand(batch, -1, -1))  # (B, heads, Q, d_head)
        k, v = self._heads(self.key(h)), self._heads(self.value(h))  # (B, heads, N, d_head)
        keep = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, N)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        attended = attended.transpose(1, 2).flatten(2)  # (B, Q, D)
        return self.norm(attended + self.queries)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, N, D) -> (B, heads, N, d_head)


class TemporalModule(nn.Module):
    """LN(MHA(Q_t, GRU(Conv1D(h_a))) + Q_t): multi-scale 1-D convolutions, then a 2-layer bidirectional GRU."""

    def __init__(self, config: AdapterConfig, dim: int) -> None:
        super().__init__()
        kernels = config.kernels
        if dim % 2:
            raise ValueError(f"the bidirectional GRU needs an even encoder width, not {dim}")
        if not kernels or any(kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"kernels {kernels}: give one or more odd sizes, so that the length is kept")
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, kernel, padding=kernel // 2) for kernel in kernels)
        self.merge = nn.Linear(len(kernels) * dim, dim)  # the 1x1 convolution, on channels-last tokens
        self.gru = nn.GRU(dim, dim // 2, num_layers=2, batch_first=True, bidirectional=True)
        self.attention = QueryAttention(config, dim, config.temporal_queries)

    def forward(self, h_a: Tensor, mask: Tensor) -> Tensor:
        # Zero padding in the batch is what the convolution itself pads a lone clip with.
        x = h_a.masked_fill(~mask[..., None], 0).transpose(1, 2)  # (B, D, N_a)
        x = torch.cat([conv(x) for conv in self.convs], dim=1).transpose(1, 2)  # (B, N_a, kernels * D)
        x = F.gelu(self.merge(x))  # (B, N_a, D)
        # Packed, so that the backward direction starts at a clip's own last token; wants lengths on the CPU.
        packed = pack_padded_sequence(x, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        packed, _ = self.gru(packed)
        x, _ = pad_packed_sequence(packed, batch_first=True, total_length=mask.shape[1])  # (B, N_a, D)
        return self.attention(x, mask)


class TwoStreamAdapter(nn.Module):
    """h_a (B, N_a, D), mask (B, N_a) -> z_a (B, N_g, D_llm), all valid.

    Either stream can be switched off, for the ablations.
    """

    def __init__(self, config: AdapterConfig, dim: int, dim_llm: int) -> None:
        super().__init__()
        if not (config.semantic or config.temporal):
            raise ValueError("both streams of the adapter are off: switch semantic or temporal on")
        self.semantic = QueryAttention(config, dim, config.semantic_queries) if config.semantic else None
        self.temporal = TemporalModule(config, dim) if config.temporal else None
        self.fusion = QueryAttention(config, dim, config.fusion_queries)
        self.out = nn.Linear(dim, dim_llm)

    def forward(self, h_a: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        _require_tokens(mask)
        streams = [stream(h_a, mask) for stream in (self.semantic, self.temporal) if stream is not None]
        h = torch.cat(streams, dim=1)  # (B, N_s + N_t, D)
        z_a = self.out(self.fusion(h))  # (B, N_g, D_llm)
        return z_a, mask.new_ones(z_a.shape[:2])


class LinearProjector(nn.Module):
    """Baseline: z_a = Linear(h_a), token by token; (B, N_a, D) -> (B, N_a, D_llm) with the mask of h_a."""

    def __init__(self, config: AdapterConfig, dim: int, dim_llm: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, dim_llm)

    def forward(self, h_a: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        _require_tokens(mask)
        return self.out(h_a), mask


class QFormer(nn.Module):
    """Baseline: learnable queries through transformer decoder layers that read h_a; -> (B, queries, D_llm).

    A layer is self-attention of the queries, cross-attention to h_a and a feed-forward of 4 D with GELU, all
    pre-norm (our choice).
    """

    def __init__(self, config: AdapterConfig, dim: int, dim_llm: int) -> None:
        super().__init__()
        _require_heads(dim, config.head_dim)
        self.queries = nn.Parameter(config.query_std * torch.randn(config.fusion_queries, dim))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                dim,
                dim // config.head_dim,
                4 * dim,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim_llm)

    def forward(self, h_a: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        _require_tokens(mask)
        x = self.queries.expand(h_a.shape[0], -1, -1)  # (B, queries, D)
        for layer in self.layers:
            x = layer(x, h_a, memory_key_padding_mask=~mask)
        z_a = self.out(self.norm(x))  # (B, queries, D_llm)
        return z_a, mask.new_ones(z_a.shape[:2])


ADAPTERS: dict[str, type[TwoStreamAdapter] | type[LinearProjector] | type[QFormer]] = {
    "two_stream": TwoStreamAdapter,
    "linear": LinearProjector,
    "qformer": QFormer,
}


def _require_heads(dim: int, head_dim: int) -> None:
    if dim % head_dim:
        raise ValueError(
            f"encoder width {dim} is not a multiple of head_dim {head_dim}: choose a head_dim that divides it"
        )


def _require_tokens(mask: Tensor) -> None:
    """A clip without a token would give NaN; a hole in the mask would misalign the packed GRU."""
    if not mask.any(1).all():
        raise ValueError("a clip in the batch has no valid audio token: drop empty clips before the adapter")
    assert (mask[:, 1:] <= mask[:, :-1]).all(), "padding must be at the end"
