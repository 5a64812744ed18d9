"""A LLaMA as one graph that grows a tree of tokens: the prompt, the beams of a search, and whole captions alike.

The forward pass is that of `transformers`' LlamaForCausalLM. The new tokens of a clip attend to those before, whose
keys and values are kept once a clip, and to each other, as a mask says. So a prompt is a chain, a step of beam search
adds a leaf for each beam, and captions that begin alike share their beginning; nothing is reordered when beams are.

    h = x + O softmax(q [K ; k]^T / sqrt(d)) [V ; v],   x' = h + W_down (silu(W_gate n(h)) * W_up n(h))

Letters: A clips, n new tokens of each, M tokens before, m of the new ones whose logits are asked for, H query heads, G
key and value heads, d width of a head, D width, V vocabulary.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import LambError

MASKED = -1e9


class UnsupportedModelError(LambError, ValueError):
    """A part of a model that has no graph here; the remedy says what can run it."""


class Llama(nn.Module):
    """`forward` is the graph; `guided` and `residual` tell whether the Token Guide has a part in it."""

    inv_freq: Tensor

    def __init__(self, llm: Any, guided: bool, residual: bool):
        super().__init__()
        require_llama(llm)
        self.layers, self.norm, self.head = llm.model.layers, llm.model.norm, llm.lm_head.weight
        self.embedding = llm.get_input_embeddings().weight
        self.guided, self.residual, self.tied = guided, residual, self.head is self.embedding
        rope, config = llm.model.rotary_emb, llm.config
        self.register_buffer("inv_freq", rope.inv_freq.float().clone())
        self.rope_scale = float(rope.attention_scaling)
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor,
        at: Tensor,
        bias: Tensor,
        spent: Tensor,
        *cache: Tensor,
    ) -> tuple[Tensor, ...]:
        """Grow the tree.

        Args:
            x: (A, n, D) embeddings of the new tokens.
            positions: (A, n) of each in its caption, the prompt included.
            mask: (A, n, M + n) which tokens each attends to, itself included.
            at: (m,) which of the new tokens' logits are asked for.
            bias: (A, V) of the guide, times its strength.
            spent: (A, m, D) what the residual guide adds to z̄, times twice beta and its strength.
            cache: keys and values of each layer, (A, G, M, d) each.

        Returns:
            Logits (A, m, V), then keys and values of each layer, (A, G, M + n, d).
        """
        angle = positions[..., None].float() * self.inv_freq  # (A, n, d / 2)
        angle = torch.cat([angle, angle], -1)[:, None]  # (A, 1, n, d)
        cos, sin = angle.cos() * self.rope_scale, angle.sin() * self.rope_scale
        hidden = MASKED * (1 - mask[:, None].to(x.dtype))  # (A, 1, n, M + n)
        kept: list[Tensor] = []
        for n, layer in enumerate(self.layers):
            attention, normed = layer.self_attn, rms_norm(layer.input_layernorm, x)
            q = self._split(attention.q_proj(normed))  # (A, H, n, d)
            k, v = self._split(attention.k_proj(normed)), self._split(attention.v_proj(normed))  # (A, G, n, d)
            q, k = q * cos + _half_turn(q) * sin, k * cos + _half_turn(k) * sin
            k, v = torch.cat([cache[2 * n], k], 2), torch.cat([cache[2 * n + 1], v], 2)  # (A, G, M + n, d)
            kept += [k, v]
            if self.heads != self.groups:
                k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))  # (A, H, M + n, d)
            weights = (q * self.head_dim**-0.5 @ k.transpose(-1, -2) + hidden).softmax(-1)  # (A, H, n, M + n)
            x = x + attention.o_proj((weights @ v).transpose(1, 2).flatten(2))
            normed = rms_norm(layer.post_attention_layernorm, x)
            x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed))
        x = rms_norm(self.norm, x.index_select(1, at))  # (A, m, D)
        # one product where head and embedding are the same matrix
        logits = F.linear(x + spent if self.residual and self.tied else x, self.head)  # (A, m, V)
        if self.residual and not self.tied:
            logits = logits + F.linear(spent, self.embedding)
        return (logits + bias[:, None] if self.guided else logits), *kept

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (A, n, heads d) -> (A, heads, n, d)


def require_llama(llm: Any) -> None:
    """UnsupportedModelError unless the forward pass above is that of `llm`."""
    config = llm.config
    if config.model_type != "llama":
        raise UnsupportedModelError(
            f"a language model of the kind {config.model_type!r} has no ONNX graph",
            "export a LAMB model around a LLaMA, or stay with PyTorch (engine torch), which runs this one",
        )
    if config.hidden_act != "silu":
        raise UnsupportedModelError(
            f"a LLaMA with the activation {config.hidden_act!r} has no ONNX graph",
            "stay with PyTorch (engine torch), which runs this one",
        )


def rms_norm(norm: Any, x: Tensor) -> Tensor:
    """Root mean square norm (Zhang and Sennrich, 2019), as LLaMA has it."""
    return norm.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon))


def float32_copy(module: Any) -> Any:
    """A copy of a module in float32 on the CPU, for graphs."""
    return copy.deepcopy(module).cpu().float().eval()


def _half_turn(x: Tensor) -> Tensor:
    """(..., d) -> the two halves exchanged, the first negated."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
