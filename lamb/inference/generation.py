"""From audio tokens to captions: `generate()` of `transformers`, steered by the Token Guide.

The guide's bias is computed once a clip and added to the logits of every step. `transformers` runs logits processors
after the log-softmax in beam search; adding the bias there and normalising again equals adding it to the logits:
log_softmax(log_softmax(x) + b) = log_softmax(x + b). Sampling is greedy search on logits with Gumbel noise that is
drawn from the seed alone, so that a clip's sample does not depend on its batch neighbours.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import extensions
from ..config import DecodeConfig
from ..model.lamb import LambModel, caption_labels
from .captions import Sound


@dataclass(frozen=True)
class Hypothesis:
    """One candidate caption."""

    text: str  # a clean sentence
    score: float  # mean log probability of its tokens and its end, under the guided model
    sounds: tuple[Sound, ...] = ()  # that it names, where they were weighed (lamb.inference.weighing)
    confidence: float | None = None  # of a caption whose sounds were weighed


class GuideBias:
    """Logits processor: adds the guide's bias to scores (B * k, V), k rows a clip.

    `bias` (B, 1, V) is that of the first step; the guide may change it with the ids so far.
    """

    def __init__(self, model: LambModel, bias: Tensor, strength: float):
        self.model, self.bias, self.strength = model, bias, strength

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bias = self.bias.repeat_interleave(len(scores) // len(self.bias), 0)  # (B * k, 1, V)
        step: Any = self.model.step_bias(bias, input_ids, last=True)  # (B * k, 1, V)
        return scores.float() + self.strength * step[:, 0]


class GumbelNoise:
    """Logits processor: the same Gumbel noise (n, V) for every clip, so that an argmax is a sample."""

    def __init__(self, samples: int, seed: int):
        self.samples, self.generator = samples, torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.rand(self.samples, scores.shape[1], generator=self.generator).clamp_min(1e-20)
        noise = -(-uniform.log()).clamp_min(1e-20).log()  # (n, V)
        return scores + noise.to(scores.device).repeat(len(scores) // self.samples, 1)


@torch.inference_mode()
def generate(
    model: LambModel,
    z_a: Tensor,
    mask: Tensor,
    options: DecodeConfig,
    n_best: int = 1,
    seed: int | None = None,
    scored: bool = True,
) -> list[list[Hypothesis]]:
    """Captions of z_a (B, N, D_llm), mask (B, N): for every clip its hypotheses, best first, at most `n_best`.

    Beam search with `options.beams` (1: greedy), or sampling where a `seed` is given. Repeated texts are dropped.
    What a search found may stay without scores (`scored` False: all 0), where another pass gives them.
    """
    reranker = extensions.reranker(model)
    if reranker is None or seed is not None or options.beams == 1:
        return _generate(model, z_a, mask, options, n_best, seed, scored)
    found = _generate(model, z_a, mask, options, max(options.beams, n_best), seed)
    values = reranker.values(z_a, mask, [[(h.text, h.score) for h in row] for row in found])
    ranked = (sorted(zip(v, row, strict=True), key=lambda pair: -pair[0]) for v, row in zip(values, found, strict=True))
    return [[hypothesis for _, hypothesis in row[:n_best]] for row in ranked]


def _generate(
    model: LambModel,
    z_a: Tensor,
    mask: Tensor,
    options: DecodeConfig,
    n_best: int,
    seed: int | None,
    scored: bool = True,
) -> list[list[Hypothesis]]:
    """The same, in the order of search or score."""
    from transformers import GenerationConfig, LogitsProcessorList
    from transformers.generation.logits_process import (
        NoRepeatNGramLogitsProcessor,
        TemperatureLogitsWarper,
        TopPLogitsWarper,
    )

    size = len(z_a)
    prefix, prefix_mask = model.llm.prefix(z_a, mask)
    bias = model.bias(z_a, mask) if options.guide else None
    processors: list[Any] = [] if bias is None else [GuideBias(model, bias, options.guide)]
    if options.no_repeat_ngram:
        processors.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram))
    processors += extensions.logits_processors(model)
    if seed is not None:
        processors += [TemperatureLogitsWarper(options.temperature), TopPLogitsWarper(options.top_p)]
        processors += [GumbelNoise(n_best, seed)]
        prefix, prefix_mask = prefix.repeat_interleave(n_best, 0), prefix_mask.repeat_interleave(n_best, 0)
    beams = 1 if seed is not None else max(options.beams, n_best)
    eos = model.llm.tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        num_beams=beams,
        num_return_sequences=1 if seed is not None else n_best,
        do_sample=False,
        length_penalty=options.length_penalty,
        renormalize_logits=True,
        eos_token_id=eos,
        pad_token_id=eos,
        bos_token_id=model.llm.tokenizer.bos_token_id,
    )
    ids = model.llm.model.generate(
        inputs_embeds=prefix,
        attention_mask=prefix_mask.long(),
        generation_config=config,
        logits_processor=LogitsProcessorList(processors),
        synced_gpus=False,  # a sharded model is gathered before (lamb.model.sharding): this process goes on alone
    )  # (B * n_best, L)
    if seed is None:
        prefix, prefix_mask = prefix.repeat_interleave(n_best, 0), prefix_mask.repeat_interleave(n_best, 0)
    scores = torch.zeros(len(ids))
    if scored or seed is not None:
        scores = score(model, prefix, prefix_mask, ids, bias, options)
    texts = [clean(model.llm.tokenizer.decode(row, skip_special_tokens=True)) for row in ids]
    found = [Hypothesis(text, value) for text, value in zip(texts, scores.tolist(), strict=True)]
    if seed is not None:  # a search has ranked them: by score, or as its length penalty asks
        found = [h for k in range(size) for h in sorted(found[k * n_best : (k + 1) * n_best], key=lambda h: -h.score)]
    return [_distinct(found[k * n_best : (k + 1) * n_best]) for k in range(size)]


def score(
    model: LambModel, prefix: Tensor, prefix_mask: Tensor, ids: Tensor, bias: Tensor | None, options: DecodeConfig
) -> Tensor:
    """Mean log probability (B * k,) of generated ids (B * k, L), the end included, under the logits and the guide's
    bias of the first step (B, 1, V), times `options.guide`."""
    mask = (ids == model.llm.tokenizer.eos_token_id).cumsum(1) == 0  # (B * k, L) tokens before the end
    if bias is not None:
        bias = bias.repeat_interleave(len(ids) // len(bias), 0)
    log_p, valid = log_probabilities(model, prefix, prefix_mask, ids, mask, bias, options)
    valid[:, -1] = False  # a caption that was cut at the limit has no end to score
    return (log_p * valid).sum(1) / valid.sum(1).clamp_min(1)


def log_probabilities(
    model: LambModel,
    prefix: Tensor,
    prefix_mask: Tensor,
    ids: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    options: DecodeConfig,
) -> tuple[Tensor, Tensor]:
    """Log probability of every token of ids (K, L), mask (K, L), and of the end behind them, with the guide's bias
    of the first step (K, 1, V): (K, L + 1), and where there is one (K, L + 1)."""
    logits = model.llm.logits(prefix, prefix_mask, ids).float()  # (K, L + 1, V)
    if bias is not None:
        steps: Any = model.step_bias(bias, ids)  # (K, 1 or L + 1, V)
        logits = logits + options.guide * steps
    labels = caption_labels(ids, mask, model.llm.tokenizer.eos_token_id)  # (K, L + 1)
    log_p = logits.gather(2, labels.clamp_min(0)[..., None])[..., 0] - logits.logsumexp(-1)
    return log_p, labels != -100


def clean(text: str) -> str:
    """One line, a capital first, a full stop last."""
    text = " ".join(text.split()).replace(" ,", ",").replace(" .", ".").rstrip(" ,;:-")
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def _distinct(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    unique: dict[str, Hypothesis] = {}
    for hypothesis in hypotheses:
        unique.setdefault(hypothesis.text, hypothesis)
    return list(unique.values())
