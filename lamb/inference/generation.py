"""From audio tokens to captions: `generate()` of `transformers`, steered by the Token Guide.

The guide's bias is computed once a clip and added to the logits of every step. `transformers` runs logits processors
after the log-softmax in beam search; adding the bias there and normalising again equals adding it to the logits:
log_softmax(log_softmax(x) + b) = log_softmax(x + b). Sampling is greedy search on logits with Gumbel noise that is
drawn from the seed alone, so that a clip's sample does not depend on its batch neighbours.

With `rerank` = r the aligner's space has a say in which beam is the best: log p + r * cos(mean z_a, mean z_t), log p
the mean log probability of its tokens and z_t their input embeddings. A language model says the loudest sound twice
rather than a doubtful one; the aligned space asks for all that is heard. [O]
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..config import DecodeConfig
from ..model.aligner import pool
from ..model.lamb import LambModel, caption_labels
from .captions import Sound

WORD_STARTS = ("\u0120", "\u2581")  # what a tokenizer writes for the blank before a word: byte-level BPE, SentencePiece
# words of four letters and more that two different sounds may share
SHARED = frozenset(
    word
    for line in (
        "then with while background distance followed before after several times person people someone another water",
        "sound sounds loudly steadily being into onto over their that from slowly quickly once twice three many",
    )
    for word in line.split()
)


@dataclass(frozen=True)
class Hypothesis:
    """One candidate caption."""

    text: str  # a clean sentence
    score: float  # mean log probability of its tokens and its end, under the guided model
    sounds: tuple[Sound, ...] = ()  # that it names, where they were weighed (lamb.inference.weighing)
    confidence: float | None = None  # of a caption whose sounds were weighed


class GuideBias:
    """Logits processor: adds the guide's bias (B, V) to scores (B * k, V), k rows a clip; of a residual guide also what
    the ids so far add."""

    def __init__(self, model: LambModel, bias: Tensor, options: DecodeConfig):
        self.model, self.bias, self.options = model, bias, options

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        once = self.bias.repeat_interleave(len(scores) // len(self.bias), 0)
        return scores.float() + self.options.guide * self.model.next_bias(once, input_ids, self.options.said)


class OneMention:
    """Logits processor: a token that begins a word of what sounds is not generated twice. [O]

    A small model that hears a sound change tells it as two of a kind, "a baby cries with a baby crying". Words of fewer
    than four letters, and those in SHARED, may come again: "a person coughs, then a person sneezes".
    """

    def __init__(self, tokenizer: Any, vocabulary: int):
        self.once = torch.zeros(vocabulary, dtype=torch.bool)  # (V,)
        for token, number in tokenizer.get_vocab().items():
            word = token[1:].lower()
            self.once[number] = token[:1] in WORD_STARTS and len(word) > 3 and word.isalpha() and word not in SHARED

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)  # (B * k, V)
        said.scatter_(1, input_ids, True)
        return scores.masked_fill(said & self.once.to(scores.device), -torch.inf)


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
    model: LambModel, z_a: Tensor, mask: Tensor, options: DecodeConfig, n_best: int = 1, seed: int | None = None
) -> list[list[Hypothesis]]:
    """Captions of z_a (B, N, D_llm), mask (B, N): for every clip its hypotheses, best first, at most `n_best`.

    Beam search with `options.beams` (1: greedy), or sampling where a `seed` is given. Repeated texts are dropped.
    """
    if options.rerank and seed is None and options.beams > 1:
        searched = generate(model, z_a, mask, replace(options, rerank=0.0), max(options.beams, n_best))
        return [row[:n_best] for row in _reranked(model, z_a, mask, searched, options.rerank)]
    from transformers import GenerationConfig, LogitsProcessorList
    from transformers.generation.logits_process import (
        NoRepeatNGramLogitsProcessor,
        TemperatureLogitsWarper,
        TopPLogitsWarper,
    )

    size = len(z_a)
    prefix, prefix_mask = model.llm.prefix(z_a, mask)
    bias = model.bias(z_a, mask) if options.guide else None
    processors: list[Any] = [] if bias is None else [GuideBias(model, bias, options)]
    if options.no_repeat_ngram:
        processors.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram))
    if options.no_repeat_word:
        processors.append(OneMention(model.llm.tokenizer, len(model.llm.table)))
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
    scores = score(model, prefix, prefix_mask, ids, bias, options)
    texts = [clean(model.llm.tokenizer.decode(row, skip_special_tokens=True)) for row in ids]
    found = [Hypothesis(text, value) for text, value in zip(texts, scores.tolist(), strict=True)]
    if seed is not None:  # a search has ranked them: by score, or as its length penalty asks
        found = [h for k in range(size) for h in sorted(found[k * n_best : (k + 1) * n_best], key=lambda h: -h.score)]
    return [_distinct(found[k * n_best : (k + 1) * n_best]) for k in range(size)]


def _reranked(
    model: LambModel, z_a: Tensor, mask: Tensor, found: list[list[Hypothesis]], weight: float
) -> list[list[Hypothesis]]:
    """Every clip's hypotheses in the order of score + weight * cosine to z_a (B, N, D_llm), mask (B, N)."""
    texts = [h.text or "." for hypotheses in found for h in hypotheses]
    clip = torch.tensor([row for row, hypotheses in enumerate(found) for _ in hypotheses], device=z_a.device)
    ids, text_mask = model.llm.tokenize(texts)  # (C, L)
    text = pool(model.llm.embed(ids), text_mask)  # (C, D_llm)
    likeness = iter(torch.cosine_similarity(pool(z_a, mask)[clip], text).tolist())
    scored = [[(h.score + weight * next(likeness), h) for h in hypotheses] for hypotheses in found]
    return [[h for _, h in sorted(row, key=lambda item: -item[0])] for row in scored]


def score(
    model: LambModel, prefix: Tensor, prefix_mask: Tensor, ids: Tensor, bias: Tensor | None, options: DecodeConfig
) -> Tensor:
    """Mean log probability (B * k,) of generated ids (B * k, L), the end included, under the logits and the guide's
    bias (B, V), which counts as `options` say."""
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
    (K, V): (K, L + 1), and where there is one (K, L + 1)."""
    logits = model.llm.logits(prefix, prefix_mask, ids).float()  # (K, L + 1, V)
    if bias is not None:
        by_token: Any = model.token_bias(bias, ids, options.said)
        logits = logits + options.guide * (by_token if by_token.ndim == 3 else by_token[:, None])
    labels = caption_labels(ids, mask, model.llm.tokenizer.eos_token_id)  # (K, L + 1)
    log_p = logits.log_softmax(-1).gather(2, labels.clamp_min(0)[..., None])[..., 0]
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
