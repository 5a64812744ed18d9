"""The one decoding loop: beam search, greedy search and sampling over the logits of any engine, in NumPy.

An engine (PyTorch, ONNX Runtime) hands out a `Decoding`: a batch of clips whose prompts are read and whose captions
grow by one token at a time. Its logits already hold the Token Guide's bias, so that the bias enters before the
log-softmax, as beam search needs it.

A sequence y_1 .. y_n (the last token is the end-of-sequence token, unless the caption was cut at the limit) has

    log p(y) = sum_t log softmax(logits_t)[y_t]             score = log p(y) / n
    rank     = log p(y) / n ** length_penalty               (the length penalty of `transformers`)

Beam search follows `transformers` (`early_stopping=False`): of the 2k best continuations of k beams, those among the
first k that end are finished, and the best k that do not end go on; a clip is done when it has k finished sequences
and its best running beam, at its present length, ranks below the worst of them. Our choices: a filter removes tokens
without a new normalisation, so that a sequence that was kept from repeating itself gains nothing by it and the score
that is shown is the one that ranks; a clip that is done leaves the batch.

Sampling is greedy search on logits with Gumbel noise that is drawn from the seed alone, so that a clip's sample does
not depend on its batch neighbours [O].

Letters: B clips, A of them not done, k beams of each (1 at first), R = A k rows, L tokens so far, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Filter = Callable[[np.ndarray, np.ndarray], None]  # (ids (R, L), log probabilities (R, V)): sets some to -inf
NEVER = -1e9  # the rank of a hypothesis that is not there


class Decoding(Protocol):
    """Captions that grow: k beams of each clip, one at first."""

    def start(self) -> np.ndarray:
        """Logits (B, 1, V) of the first token of every clip's caption, float32."""
        ...

    def step(self, keep: np.ndarray, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The logits (A, k, V) of what follows, float32, once every beam has grown by a token.

        Args:
            keep: (A,) which of the present clips go on, in their order; the others are done and leave.
            parents: (A, k) which of its clip's present beams each new beam goes on from.
            tokens: (A, k) the token that follows there.
        """
        ...

    def log_probabilities(self, clips: Sequence[int], ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Of given captions: log probability (L + 1,) of each of the tokens `ids` of a caption, and of its end.

        `clips` says which of the B clips each caption is of. It does not matter how far a search has come.
        """
        ...


@dataclass(frozen=True)
class Found:
    """One candidate caption as tokens."""

    ids: tuple[int, ...]  # without the end-of-sequence token
    log_p: tuple[float, ...]  # log probability of each token, and of the end where it was reached

    @property
    def score(self) -> float:
        """Mean log probability of a token."""
        return sum(self.log_p) / max(len(self.log_p), 1)


def beam_search(
    decoding: Decoding,
    *,
    beams: int,
    eos: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    filters: Sequence[Filter] = (),
) -> list[list[Found]]:
    """For every clip of `decoding` its finished sequences by rank, best first, `beams` of them where so many exist.

    One beam is greedy search: the first end-of-sequence token ends it.
    """
    log_p = log_softmax(decoding.start())  # (B, 1, V)
    size, _, vocabulary = log_p.shape
    done = [_Finished(beams) for _ in range(size)]
    clips = np.arange(size)  # (A,) those that are not done
    ids = np.zeros((size, 1, 0), np.int64)  # (A, k, L)
    values = np.zeros((size, 1, 0), np.float32)  # (A, k, L) log p of each token
    scores = np.zeros((size, 1), np.float32)  # (A, k) log p of the running beams
    for length in range(1, max_new_tokens + 1):
        _apply(filters, ids, log_p)
        total = scores[..., None] + log_p  # (A, k, V)
        best, at = _largest(total.reshape(len(clips), -1), 2 * beams)  # (A, 2 k), best first
        parent, token = at // vocabulary, at % vocabulary
        value = log_p.reshape(len(clips), -1)[np.arange(len(clips))[:, None], at]  # (A, 2 k)
        ends = (token == eos) | (length == max_new_tokens)
        for a, b in zip(*np.nonzero(ends[:, :beams] & (best[:, :beams] > NEVER)), strict=True):
            of = a, parent[a, b]
            tail = () if token[a, b] == eos else (int(token[a, b]),)
            found = Found((*ids[of].tolist(), *tail), (*values[of].tolist(), float(value[a, b])))
            done[clips[a]].add(found, float(best[a, b]) / length**length_penalty)
        # the best that go on, in their order
        order = np.argsort(ends, axis=1, kind="stable")[:, :beams]  # (A, k)
        best, token, parent, value, ends = (np.take_along_axis(x, order, 1) for x in (best, token, parent, value, ends))
        best = np.where(ends, NEVER, best)
        hopes = best[:, 0] / length**length_penalty
        keep = np.array([k for k, clip in enumerate(clips) if not done[clip].closed(hopes[k])], np.int64)
        if length == max_new_tokens or not len(keep):
            break
        clips, scores, parent, token = clips[keep], best[keep], parent[keep], token[keep]
        ids = np.concatenate([ids[keep[:, None], parent], token[..., None]], 2)
        values = np.concatenate([values[keep[:, None], parent], value[keep, :, None]], 2)
        log_p = log_softmax(decoding.step(keep, parent, token))  # (A, k, V)
    return [finished.sequences() for finished in done]


def sample(
    decoding: Decoding,
    *,
    samples: int,
    seed: int,
    eos: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    filters: Sequence[Filter] = (),
) -> list[list[Found]]:
    """For every clip of `decoding` sequences drawn at random, `samples` of them, by score.

    The distribution is softmax(log p / temperature), cut to the fewest tokens whose probabilities sum to `top_p`; the
    scores are those of the model, without either.
    """
    rng = np.random.default_rng(seed)
    log_p = np.repeat(log_softmax(decoding.start()), samples, 1)  # (B, k, V)
    size, _, vocabulary = log_p.shape
    clips = np.arange(size)  # (A,) those that have a sample without an end
    parents = np.zeros((size, samples), np.int64)
    ids = np.zeros((size, samples, 0), np.int64)  # (A, k, L)
    values = np.zeros((size, samples, 0), np.float32)  # (A, k, L) log p of each token
    running = np.ones((size, samples), bool)
    found: list[list[Found]] = [[Found((), ())] * samples for _ in range(size)]
    for length in range(1, max_new_tokens + 1):
        _apply(filters, ids, log_p)
        uniform = rng.random((samples, vocabulary)).clip(1e-20, 1 - 1e-12)
        noise = -np.log(-np.log(uniform))  # Gumbel, (k, V), the same for every clip
        token = (_nucleus(log_softmax(log_p / np.float32(temperature)), top_p) + noise).argmax(2)  # (A, k)
        values = np.concatenate([values, np.take_along_axis(log_p, token[..., None], 2)], 2)
        ids = np.concatenate([ids, token[..., None]], 2)
        last = (token == eos) | (length == max_new_tokens)
        for a, k in zip(*np.nonzero(running & last), strict=True):
            own = ids[a, k].tolist()
            found[clips[a]][k] = Found(tuple(own[: len(own) - (own[-1] == eos)]), tuple(values[a, k].tolist()))
        running &= ~last
        keep = np.nonzero(running.any(1))[0]
        if not len(keep):
            break
        clips, running, token, ids, values = clips[keep], running[keep], token[keep], ids[keep], values[keep]
        log_p = log_softmax(decoding.step(keep, parents[keep], token))
        parents = np.broadcast_to(np.arange(samples), (len(keep), samples))
    return [sorted(row, key=lambda one: -one.score) for row in found]


class NoRepeatNGram:
    """Filter: no run of `n` tokens comes twice. [O]"""

    def __init__(self, n: int):
        self.n = n

    def __call__(self, ids: np.ndarray, log_p: np.ndarray) -> None:
        count = ids.shape[1] - self.n + 1  # runs of n tokens so far
        if count <= 0:
            return
        same = np.ones((len(ids), count), bool)
        for k in range(self.n - 1):  # each run's first n - 1 tokens against the last n - 1
            same &= ids[:, k : k + count] == ids[:, ids.shape[1] - self.n + 1 + k, None]
        row, run = np.nonzero(same)
        log_p[row, ids[row, run + self.n - 1]] = -np.inf


class _Finished:
    """The best finished sequences of one clip, at most `most`."""

    def __init__(self, most: int):
        self.most = most
        self.found: list[tuple[float, Found]] = []  # rank and sequence, best first

    def add(self, sequence: Found, rank: float) -> None:
        self.found = sorted([*self.found, (rank, sequence)], key=lambda item: -item[0])[: self.most]

    def closed(self, hope: float) -> bool:
        """Whether a running beam of rank `hope` can no longer be among the best; one beam is closed by any end."""
        return len(self.found) == self.most and (self.most == 1 or hope <= self.found[-1][0])

    def sequences(self) -> list[Found]:
        return [sequence for _, sequence in self.found]


def _apply(filters: Sequence[Filter], ids: np.ndarray, log_p: np.ndarray) -> None:
    """Every filter on ids (A, k, L) and log_p (A, k, V), in place."""
    rows = ids.shape[0] * ids.shape[1]
    for keep in filters:
        keep(ids.reshape(rows, ids.shape[2]), log_p.reshape(rows, log_p.shape[2]))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(..., V) -> (..., V) float32."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _largest(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest of each row of x (A, N), best first, and where they stand: (A, count) each.

    The maxima of blocks give a bound below which nothing can be among them, so that only a few numbers are sorted.
    """
    count = min(count, x.shape[1])
    block = 32
    if x.shape[1] < 4 * block * count:
        at = np.argsort(-x, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(x, at, 1), at
    whole = x.shape[1] // block * block
    maxima = x[:, :whole].reshape(len(x), -1, block).max(2)  # (A, N / block)
    bound = np.partition(maxima, maxima.shape[1] - count, axis=1)[:, -count]  # (A,)
    at = np.empty((len(x), count), np.int64)
    for a, row in enumerate(x):
        candidates = np.nonzero(row >= bound[a])[0]
        at[a] = candidates[np.argsort(-row[candidates], kind="stable")[:count]]
    return np.take_along_axis(x, at, 1), at


def _nucleus(log_p: np.ndarray, top_p: float) -> np.ndarray:
    """log_p (..., V) with -inf for all but the fewest most probable tokens whose probabilities sum to `top_p`."""
    if top_p >= 1:
        return log_p
    order = np.argsort(-log_p, axis=-1, kind="stable")
    p = np.exp(np.take_along_axis(log_p, order, -1))
    kept = np.cumsum(p, -1) - p < top_p  # the token that crosses the line stays
    kept_at = np.zeros_like(kept)
    np.put_along_axis(kept_at, order, kept, -1)
    return np.where(kept_at, log_p, -np.inf)
