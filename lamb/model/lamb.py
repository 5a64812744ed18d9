"""LAMB: encoder -> adapter -> z_a -> LLM, with the Token Guide (paper sections 1 to 4); tensors out, no losses.

Letters: B batch, T samples, N audio tokens, L caption tokens, P prompt tokens, V vocabulary, D_llm LLM width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import AdapterConfig, ConfigError, EncoderConfig, LambConfig
from .adapter import LinearProjector, QFormer, TwoStreamAdapter, sinusoids
from .aligner import CrossModalAligner
from .encoders import ENCODERS
from .language_model import LanguageModel, merge_lora
from .token_guide import TokenGuide, initial_beta


@dataclass
class Output:
    """What a training step needs."""

    z_a: Tensor  # (B, N, D_llm) audio tokens
    z_a_mask: Tensor  # (B, N)
    z_t: Tensor  # (B, L, D_llm) input embeddings of the caption tokens
    z_t_mask: Tensor  # (B, L)
    logits: Tensor  # (B, L + 1, V) raw
    bias: Tensor | None  # (B, V) of the guide, (B, L + 1, V) of a residual one; None without
    labels: Tensor  # (B, L + 1) caption ids, then EOS, then -100


class LambModel(nn.Module):
    """The parts of the method; `aligner` and `guide` are None where the config switches them off."""

    def __init__(self, config: LambConfig, encoder: Any, llm: LanguageModel):
        super().__init__()
        self.config, self.encoder, self.llm = config, encoder, llm
        try:
            self.adapter = build_adapter(config.adapter, encoder.dim, llm.dim)
        except ValueError as error:
            raise ConfigError(f"adapter: {error}") from None
        self.aligner: CrossModalAligner | None = None
        if config.aligner.enabled:
            a = config.aligner
            self.aligner = CrossModalAligner(
                global_weight=a.global_weight,
                token_weight=a.token_weight,
                infonce_weight=a.infonce_weight,
                sigma=a.sigma,
                normalise=a.normalise,
                temperature=a.temperature,
                max_scale=a.max_scale,
            )
        self.guide: TokenGuide | None = None
        if config.guide.enabled:
            g = config.guide
            self.guide = TokenGuide(
                distance=g.distance, reduce=g.reduce, beta=1.0 if g.beta is None else g.beta, residual=g.residual
            )

    @torch.no_grad()
    def initialise(self) -> None:
        """Fit a new adapter and guide to the LLM's embedding table. [O]

        The adapter's last layer is scaled so that z_a begins with the spread of the table's entries, and beta so that
        the guide's bias has a standard deviation of about 1 over the vocabulary.
        """
        table = self.llm.table.float()
        out = self.adapter.out
        nn.init.normal_(out.weight, std=float(table.std()) / out.in_features**0.5)
        out.bias.copy_(table.mean(0))
        g = self.config.guide
        if self.guide is not None and g.beta is None:
            self.guide.beta.fill_(initial_beta(table, distance=g.distance, reduce=g.reduce))

    def train(self, mode: bool = True) -> "LambModel":
        super().train(mode)
        if self.config.encoder.train == "frozen":
            self.encoder.eval()  # BatchNorm and dropout of what does not learn stay as they are in use
        if self.config.llm.train == "frozen":
            self.llm.eval()
        return self

    def merge_lora(self) -> None:
        """Fold the LoRA of encoder and LLM into their weights, for inference."""
        if self.config.encoder.train == "lora":
            self.encoder.merge_lora()
        if self.config.llm.train == "lora":
            merge_lora(self.llm.model)

    @property
    def device(self) -> torch.device:
        return self.llm.table.device

    def encode(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """waveform (B, T), mask (B, T) -> h_a (B, N_a, D), mask (B, N_a)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.encoder.train != "frozen"):
            return self.encoder(waveform, mask)

    def audio_tokens(self, h_a: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """h_a (B, N_a, D), mask (B, N_a) -> z_a (B, N, D_llm), mask (B, N)."""
        # a frozen encoder is surer of the recordings that it learnt from than of any others: less to rely on
        lacking = F.dropout(h_a.new_ones(len(h_a), 1, h_a.shape[2]), self.config.adapter.channel_dropout, self.training)
        h_a = h_a * lacking
        if hasattr(self.encoder, "draw"):
            h_a = self.encoder.draw(h_a)
        if self.config.adapter.place:
            h_a = h_a + sinusoids(mask, h_a.shape[-1])
        return self.adapter(h_a, mask)

    def bias(self, z_a: Tensor, mask: Tensor) -> Tensor | None:
        """The guide's addition to the logits of every step, (B, V) float32; None without a guide."""
        return None if self.guide is None else self.guide(z_a, mask, self.llm.table)

    def token_bias(self, bias: Tensor | None, ids: Tensor, said: float = 1.0) -> Tensor | None:
        """The guide's `bias` (B, V) -> what is added to the logits of each of ids (B, L) and of the end: the same, or
        of a residual guide (B, L + 1, V), with `said` times its gamma."""
        if bias is None or self.guide is None or self.guide.gamma is None:
            return bias
        so_far = F.pad(self.llm.embed(ids).float().cumsum(1), (0, 0, 1, 0))  # (B, L + 1, D_llm)
        return bias[:, None] + said * self.guide.residual(so_far, self.llm.table)

    def next_bias(self, bias: Tensor, ids: Tensor, said: float = 1.0) -> Tensor:
        """The same for the token after ids (B, L) alone: (B, V)."""
        if self.guide is None or self.guide.gamma is None:
            return bias
        return bias + said * self.guide.residual(self.llm.embed(ids).float().sum(1), self.llm.table)

    def forward(self, audio: Tensor, mask: Tensor, ids: Tensor, ids_mask: Tensor, encoded: bool = False) -> Output:
        """Waveforms (B, T), or where `encoded` their h_a (B, N_a, D), with mask, and caption ids (B, L) with mask."""
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
            bias=self.token_bias(self.bias(z_a, z_a_mask), ids),
            labels=caption_labels(ids, ids_mask, self.llm.tokenizer.eos_token_id),
        )


def caption_labels(ids: Tensor, mask: Tensor, eos: int) -> Tensor:
    """Caption ids (B, L), mask (B, L) -> labels (B, L + 1): the ids, EOS, then -100."""
    labels = torch.cat([ids.masked_fill(~mask, -100), ids.new_full((len(ids), 1), -100)], 1)
    return labels.scatter(1, mask.sum(1, keepdim=True), eos)


def build_adapter(config: AdapterConfig, dim: int, dim_llm: int) -> Any:
    """The adapter or baseline that `config.kind` names, D -> D_llm."""
    if config.kind == "linear":
        return LinearProjector(dim, dim_llm)
    if config.kind == "qformer":
        return QFormer(dim, dim_llm, queries=config.fusion_queries, layers=config.layers, head_dim=config.head_dim)
    return TwoStreamAdapter(
        dim,
        dim_llm,
        semantic_queries=config.semantic_queries,
        temporal_queries=config.temporal_queries,
        fusion_queries=config.fusion_queries,
        kernels=config.kernels,
        head_dim=config.head_dim,
        query_std=config.query_std,
        semantic=config.semantic,
        temporal=config.temporal,
    )


def build_encoder(config: EncoderConfig) -> Any:
    """The encoder that `config` names: with the weights of `source`, or random; frozen, with LoRA or in full."""
    if config.name not in ENCODERS:
        raise ConfigError(f"encoder.name: {config.name!r} is not one of {', '.join(ENCODERS)}")
    kind = ENCODERS[config.name]
    if config.source is not None and config.options:
        raise ConfigError("encoder.options: the weights of encoder.source have their own; give one of the two")
    try:
        encoder = kind(**config.options) if config.source is None else kind.from_pretrained(config.source)
    except (TypeError, OSError, ValueError) as error:
        remedy = "" if config.source else "; give the options of a new encoder, or the weights of one: encoder.source"
        raise ConfigError(f"encoder.{'source' if config.source else 'options'}: {error}{remedy}") from None
    if config.train == "lora":
        if not hasattr(encoder, "add_lora"):
            raise ConfigError(f"encoder.train: {config.name} has no LoRA; choose frozen or full")
        encoder.add_lora(config.lora.rank, config.lora.alpha, config.lora.dropout)
    elif config.train == "frozen":
        encoder.requires_grad_(False)
    elif not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise ConfigError(f"encoder.train: {config.name} does not train; choose frozen")
    return encoder


def build(config: LambConfig, device: str | torch.device = "cpu") -> LambModel:
    """A model to train on `device`, where it is still to be moved: encoder and LLM from their sources, the rest new."""
    model = LambModel(config, build_encoder(config.encoder), LanguageModel.from_pretrained(config.llm, device))
    model.initialise()
    return model
