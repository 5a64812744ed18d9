"""The model as inference runs it: sounds and tokens of any lengths, in padded batches of similar length. [O]

NumPy arrays and hypotheses go in and out, in the order of the input. What runs the networks of the model is a
`Runtime`: `torch_runtime` for any model, `onnx_runtime` for one that has been exported. Nothing else in this room
knows of PyTorch or ONNX.

Letters: B batch, T samples, N_a encoder tokens, D encoder width, N audio tokens, D_llm LLM width, C labels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..audio.reader import centred
from ..config import DecodeConfig, LambConfig
from ..data.vocabulary import mentions
from .generation import Hypothesis, generate
from .search import Decoding

if TYPE_CHECKING:
    from ..model.lamb import LambModel

Result = TypeVar("Result")


class Runtime(ABC):
    """The networks and the tokenizer of a model, for batches of NumPy arrays; masks are True where a clip is."""

    config: LambConfig
    name: str  # what messages call it
    device: str
    sample_rate: int  # Hz of the samples that `encode` expects
    frame_rate: float  # encoder tokens a second
    dim: int  # D
    labels: Sequence[str]  # what `tag` tells apart; empty: the encoder has no label heads
    eos: int  # the token that ends a caption
    threads: int  # of a CPU
    space: str  # a name for the space of z_a and words: equal for the same adapter and embedding table
    vocabulary: dict[str, int]  # the number of each token

    @abstractmethod
    def share(self, ways: int) -> None:
        """Divide the threads among batches that run at once."""

    @abstractmethod
    def encode(self, x: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples (B, T), mask (B, T) -> encoder tokens h_a (B, N_a, D), mask (B, N_a)."""

    @abstractmethod
    def audio_tokens(self, h_a: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """h_a (B, N_a, D), mask (B, N_a) -> audio tokens z_a (B, N, D_llm), mask (B, N)."""

    @abstractmethod
    def tag(self, h_a: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How probable each label is: h_a, mask -> in the clip (B, C), in every token (B, N_a, C + 1)."""

    @abstractmethod
    def bias(self, z_a: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        """The Token Guide's bias of the first step: z_a, mask -> (B, V); None of a model without a guide."""

    @abstractmethod
    def decoding(self, z_a: np.ndarray, mask: np.ndarray, guide: float) -> Decoding:
        """Captions of z_a (B, N, D_llm), mask (B, N), under the guide's bias times `guide`."""

    @abstractmethod
    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """The input embeddings of tokens: L ids -> (L, D_llm) float32."""

    def tokenize(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Of each caption its tokens, without special ones, and the characters (start, end) that each stands for."""
        n = len(self.config.llm.lead)  # of the characters before each caption, which are no part of it
        found = self._tokens([self.config.llm.lead + text for text in texts])
        return [(ids, [(max(0, begin - n), max(0, end - n)) for begin, end in spans]) for ids, spans in found]

    @abstractmethod
    def _tokens(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The same of any texts: `tokenize` puts `llm.lead` before captions, as in training."""

    @abstractmethod
    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Tokens -> text of each, without special tokens."""


class Engine:
    """A model on its runtime: sound -> h_a -> z_a -> hypotheses, one method a step."""

    def __init__(self, model: LambModel | Runtime):
        """`model`: a runtime, or a `LambModel`, which PyTorch runs on the device where it is."""
        if not isinstance(model, Runtime):
            from .torch_runtime import TorchRuntime

            model = TorchRuntime(model)
        self.runtime = model

    @property
    def sample_rate(self) -> int:
        """Hz of the samples that `encode` expects."""
        return self.runtime.sample_rate

    @property
    def frame_rate(self) -> float:
        """Encoder tokens per second."""
        return self.runtime.frame_rate

    @property
    def dim(self) -> int:
        """D, the width of an encoder token."""
        return self.runtime.dim

    def encode(self, waveforms: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
        """Samples (T,) at `sample_rate`, centred -> encoder tokens h_a (N_a, D) of each, `size` waveforms at a time."""
        waveforms = [centred(x) for x in waveforms]
        return _by_length(waveforms, size, lambda batch: _rows(*self.runtime.encode(*pad(batch))))

    def audio_tokens(self, tokens: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
        """Encoder tokens h_a (N_a, D) -> audio tokens z_a (N, D_llm) of each, `size` at a time."""
        return _by_length(tokens, size, lambda batch: _rows(*self.runtime.audio_tokens(*pad(batch))))

    def kinds(self, tokens: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
        """Encoder tokens h_a (N_a, D) -> how probable each label of the encoder is in each clip (C,)."""
        return _by_length(tokens, size, lambda batch: list(self.runtime.tag(*pad(batch))[0]))

    def describe(
        self, tokens: Sequence[np.ndarray], options: DecodeConfig, n_best: int = 1, seed: int | None = None
    ) -> list[list[Hypothesis]]:
        """Encoder tokens h_a (N_a, D) -> the hypotheses of each, best first, `options.batch_size` at a time.

        After the best one follow alternatives that name other sounds (see `varied`).
        """
        runtime = self.runtime
        reranking = runtime.config.extensions.reranking

        def part(batch: list[np.ndarray]) -> list[list[Hypothesis]]:
            h_a, h_a_mask = pad(batch)  # (B, N_a, D), (B, N_a)
            z_a, mask = runtime.audio_tokens(h_a, h_a_mask)  # (B, N, D_llm), (B, N)
            decoding = runtime.decoding(z_a, mask, options.guide)
            if seed is not None:
                return generate(runtime, decoding, options, n_best, seed)
            found = generate(runtime, decoding, options, max(options.beams, n_best))
            if options.weigh.enabled:
                from .weighing import Weigher

                found = Weigher(runtime, options).choose(h_a, h_a_mask, decoding, found)
            elif reranking.weight and options.beams > 1:
                from ..extensions.reranking import Reranker

                found = Reranker(runtime, reranking).ranked(z_a, mask, found)
            return [varied(row, n_best) for row in found]

        return _by_length(tokens, options.batch_size, part)


def space_of(tensors: Mapping[str, np.ndarray], table: np.ndarray) -> str:
    """`Runtime.space` by a model's tensors, of which the adapter's count, and its embedding table (V, D_llm)."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in [*(tensors[name] for name in sorted(tensors) if name.startswith("adapter.")), table]:
        digest.update(tensor.astype(np.float32).tobytes())
    return digest.hexdigest()


def varied(hypotheses: Sequence[Hypothesis], n: int) -> list[Hypothesis]:
    """The first of the hypotheses, and `n` - 1 alternatives in the order of their scores.

    Those that name other sounds than all before them come before mere rewordings.
    """
    if n == 1:
        return list(hypotheses[:1])
    named: set[frozenset[str]] = set()
    others: list[Hypothesis] = []
    again: list[Hypothesis] = []
    for hypothesis in hypotheses:
        sounds = frozenset().union(*(mention.labels for mention in mentions(hypothesis.text)))
        (again if sounds in named else others).append(hypothesis)
        named.add(sounds)
    best, *chosen = [*others, *again][:n]
    return [best, *sorted(chosen, key=lambda hypothesis: -hypothesis.score)]


def pad(rows: Sequence[np.ndarray], value: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Arrays (N, ...) of many lengths N -> a batch (B, N, ...) padded at the end, and its mask (B, N)."""
    mask = np.arange(max(map(len, rows))) < np.array([len(row) for row in rows])[:, None]
    batch = np.full((*mask.shape, *rows[0].shape[1:]), value, rows[0].dtype)
    for own, row in zip(batch, rows, strict=True):
        own[: len(row)] = row
    return batch, mask


def _rows(x: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """(B, N, D), mask (B, N) -> the valid rows (N, D) of each."""
    return [row[there] for row, there in zip(x, mask, strict=True)]


def _by_length(
    items: Sequence[np.ndarray], size: int, part: Callable[[list[np.ndarray]], list[Result]]
) -> list[Result]:
    """`part` of all items, called with `size` of similar length at a time; results in the order of the items."""
    results: dict[int, Result] = {}
    order = sorted(range(len(items)), key=lambda k: len(items[k]))
    for begin in range(0, len(order), size):
        batch = order[begin : begin + size]
        results.update(zip(batch, part([items[k] for k in batch]), strict=True))
    return [results[k] for k in range(len(items))]
