"""LAMB: encoder -> adapter -> z_a -> LLM, with the Token Guide (paper sections 1 to 4); tensors out, no losses.

Letters: B batch, T samples, N_a encoder tokens, D encoder width, N audio tokens, L caption tokens, V vocabulary,
D_llm LLM width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import ConfigError, LambConfig
from .adapter import ADAPTERS
from .aligner import CrossModalAligner
from .encoders.base import Encoder
from .language_model import LanguageModel, merge_lora
from .padding import pad
from .token_guide import TokenGuide


@dataclass
class Output:
    """What the losses need of a training step."""

    z_a: Tensor  # (B, N, D_llm) audio tokens
    z_a_mask: Tensor  # (B, N)
    z_t: Tensor  # (B, L, D_llm) input embeddings of the caption tokens
    z_t_mask: Tensor  # (B, L)
    logits: Tensor  # (B, L + 1, V) raw
    bias: Tensor | None  # (B, 1 or L + 1, V) of the guide; None without one
    labels: Tensor  # (B, L + 1) caption ids, then EOS, then -100


class LambModel(nn.Module):
    """The parts of the method; `aligner` and `guide` are None where the config switches them off, for ablations.

    `extensions` are modules (h_a, mask) -> h_a in front of the adapter. The paper has none; see `lamb.extensions`.
    """

    def __init__(self, config: LambConfig, encoder: Encoder, llm: LanguageModel):
        super().__init__()
        self.config, self.encoder, self.llm = config, encoder, llm
        try:
            self.adapter = ADAPTERS[config.adapter.kind](config.adapter, encoder.dim, llm.dim)
        except ValueError as error:
            raise ConfigError(f"adapter: {error}") from None
        self.aligner = CrossModalAligner(config.aligner) if config.aligner.enabled else None
        self.guide = TokenGuide(config.guide) if config.guide.enabled else None
        self.extensions = nn.ModuleDict()

    @torch.no_grad()
    def initialise(self) -> None:
        """Fit the strength of a new guide to the LLM's embedding matrix, and the adapter where the config asks. [O]

        With `adapter.scale`, z_a starts with so many times the norm of the matrix's rows; with `adapter.centred`,
        around their mean. Both close a part of the modality gap before training, so that an ablation of the aligner
        should leave them off.
        """
        matrix, out, config = self.llm.embedding_matrix.float(), self.adapter.out, self.config.adapter
        if config.scale is not None:
            nn.init.normal_(out.weight, std=config.scale * float(matrix.std()) / out.in_features**0.5)
            nn.init.zeros_(out.bias)
        if config.centred:
            out.bias.copy_(matrix.mean(0))
        if self.guide is not None:
            self.guide.initialise(matrix, self.token_norm())

    @torch.no_grad()
    def token_norm(self) -> float:
        """|z_i| of an audio token whose input to the adapter's last layer has mean 0, variance 1, as after a norm."""
        out = self.adapter.out
        return float((out.weight.float().square().sum() + out.bias.float().square().sum()).sqrt())

    def train(self, mode: bool = True) -> "LambModel":
        """Training mode for the parts that learn; a frozen encoder or LLM stays in evaluation mode."""
        super().train(mode)
        if self.config.encoder.train == "frozen":
            self.encoder.eval()
        if self.config.llm.train == "frozen":
            from transformers.modeling_layers import GradientCheckpointingLayer

            self.llm.eval()
            for module in self.llm.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = mode  # the block alone, not its dropout: transformers checkpoints no other
        return self

    def merge_lora(self) -> None:
        """Fold the LoRA of encoder and LLM into their weights, for inference."""
        if self.config.encoder.train == "lora":
            self.encoder.merge_lora()
        if self.config.llm.train == "lora":
            merge_lora(self.llm.model)

    @property
    def device(self) -> torch.device:
        return self.llm.embedding_matrix.device

    def encode(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """h_a = E_a(x_a): waveform (B, T), mask (B, T) -> h_a (B, N_a, D), mask (B, N_a).

        Of windows (B, W, T) with mask (B, W, T), each is encoded apart; a clip's tokens follow one another. [O]
        """
        if waveform.ndim == 3:
            there = mask.any(-1)  # (B, W): the windows of a clip
            tokens, valid = self.encode(waveform[there], mask[there])  # (windows, N, D), (windows, N)
            counts = there.new_zeros(there.shape, dtype=torch.long).masked_scatter(there, valid.sum(1))  # (B, W)
            return pad(tokens[valid].split(counts.sum(1).tolist()))  # (B, N_a, D), (B, N_a)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.encoder.train != "frozen"):
            return self.encoder(waveform, mask)

    def audio_tokens(self, h_a: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """h_a (B, N_a, D), mask (B, N_a) -> z_a (B, N, D_llm), mask (B, N)."""
        for extension in self.extensions.values():
            h_a = extension(h_a, mask)  # (B, N_a, D)
        return self.adapter(h_a, mask)

    def bias(self, z_a: Tensor, mask: Tensor) -> Tensor | None:
        """The guide's bias of the first step: z_a (B, N, D_llm), mask (B, N) -> (B, 1, V) float32; None without it."""
        return None if self.guide is None else self.guide(z_a, mask, self.llm.embedding_matrix)

    def step_bias(self, bias: Tensor | None, ids: Tensor, last: bool = False) -> Tensor | None:
        """`bias` -> that of every step along ids (B, L) and of the end, or of the `last` step alone; see TokenGuide."""
        if bias is None or self.guide is None:
            return None
        return self.guide.steps(bias, self.llm.embed(ids), self.llm.embedding_matrix, last)

    def forward(self, audio: Tensor, mask: Tensor, ids: Tensor, ids_mask: Tensor, encoded: bool = False) -> Output:
        """Waveforms (B, T) or windows of them (B, W, T), or where `encoded` their h_a (B, N_a, D), with mask, and
        caption ids (B, L) with mask."""
        h_a, h_a_mask = (audio, mask) if encoded else self.encode(audio, mask)
        z_a, z_a_mask = self.audio_tokens(h_a, h_a_mask)
        prefix, prefix_mask = self.llm.prefix(z_a, z_a_mask)
        logits = self.llm.logits(prefix, prefix_mask, ids)  # (B, L + 1, V)
        return Output(
            z_a=z_a,
            z_a_mask=z_a_mask,
            z_t=self.llm.embed(ids),
            z_t_mask=ids_mask,
            logits=logits,
            bias=self.step_bias(self.bias(z_a, z_a_mask), ids),
            labels=caption_labels(ids, ids_mask, self.llm.tokenizer.eos_token_id),
        )


def caption_labels(ids: Tensor, mask: Tensor, eos: int) -> Tensor:
    """Caption ids (B, L), mask (B, L) -> labels (B, L + 1): the ids, EOS, then -100."""
    labels = torch.cat([ids.masked_fill(~mask, -100), ids.new_full((len(ids), 1), -100)], 1)
    return labels.scatter(1, mask.sum(1, keepdim=True), eos)
