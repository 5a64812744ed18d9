"""An exported model on ONNX Runtime as a `Runtime`: neither PyTorch nor `transformers` is needed, nor imported.

`lamb export` makes the graphs; `lamb.export.export` says which. What is not worth a graph is done here: tokens become
embeddings, and the tree of tokens that the language model grows (`lamb.export.llama`) gets its masks.

Letters: B clips, A of them not done, k beams, n new tokens, M tokens before, L tokens of a caption, N audio tokens,
D_llm LLM width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import reason
from ..model import checkpoint
from ..model.safetensors_index import entries, fingerprint
from .engine import Runtime, pad, space_of
from .loading import REMEDY, EngineError, cores, describe
from .search import log_softmax


class OnnxRuntime(Runtime):
    """See `Runtime`."""

    name = "onnx"
    device = "cpu"

    def __init__(self, folder: Path, threads: int | None = None):
        """The model in `folder` on `threads` threads; None: one for each core. EngineError if it cannot be run."""
        from tokenizers import Tokenizer

        self.folder, self.threads = folder, threads or cores()
        self.config = checkpoint.read_facts(folder)["config"]
        facts = describe(folder)
        weights = folder / "model.safetensors"
        stored = entries(weights)
        if facts["weights"] != fingerprint(weights, stored):
            raise EngineError(f"{folder}: the graphs were made of other weights than these", REMEDY)
        self.sample_rate, self.frame_rate = facts["sample_rate"], facts["frame_rate"]
        self.dim, self.labels = facts["dim"], facts["labels"]
        self.eos, self.prompt, self.residual = facts["eos"], facts["prompt"], facts["residual"]
        self.table = stored[facts["embedding"]].array(np.memmap(weights, np.uint8, "r"))  # (V, D_llm)
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "llm" / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing narrower
            raise EngineError(f"{folder}: its tokenizer cannot be read ({reason(error)})", REMEDY) from None
        self._load(self.threads)

    def _load(self, threads: int) -> None:
        names = ["language_model.onnx", "encoder.onnx", "adapter.onnx"]
        names += ["guide.onnx"] * self.config.guide.enabled + ["labels.onnx"] * bool(self.labels)
        with ThreadPoolExecutor(2) as pool:  # mostly outside of Python
            loaded = pool.map(lambda name: _session(self.folder / name, threads), names)
            self.sessions = dict(zip(names, loaded, strict=True))
        self.languages = self.sessions["language_model.onnx"]
        self.inputs = {given.name: given for given in self.languages.get_inputs()}
        self.outputs = [given.name for given in self.languages.get_outputs()]

    def share(self, ways: int) -> None:
        if (threads := max(1, self.threads // ways)) != self.threads:
            self._load(threads)

    @cached_property
    def space(self) -> str:  # type: ignore[override]
        file = self.folder / "model.safetensors"
        content, stored = np.memmap(file, np.uint8, "r"), entries(file)
        return space_of({name: entry.array(content) for name, entry in stored.items()}, self.table)

    @cached_property
    def vocabulary(self) -> dict[str, int]:  # type: ignore[override]
        return self.tokenizer.get_vocab()

    def encode(self, x: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        run = self.sessions["encoder.onnx"].run  # a clip alone is as fast as in a batch, and has no padding
        return pad([run(None, {"waveform": own[None, there]})[0][0] for own, there in zip(x, mask, strict=True)])

    def audio_tokens(self, h_a: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z_a, there = self.sessions["adapter.onnx"].run(None, {"h_a": h_a, "lengths": mask.sum(1)})
        return z_a, there

    def tag(self, h_a: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        clip, frame = self.sessions["labels.onnx"].run(None, {"h_a": h_a, "lengths": mask.sum(1)})
        return clip, frame

    def bias(self, z_a: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        if "guide.onnx" not in self.sessions:
            return None
        (bias,) = self.sessions["guide.onnx"].run(None, {"z_a": z_a, "lengths": mask.sum(1)})
        return bias

    def decoding(self, z_a: np.ndarray, mask: np.ndarray, guide: float) -> OnnxDecoding:
        return OnnxDecoding(self, z_a, mask, guide)

    def embed(self, ids: Any) -> np.ndarray:
        return self.table[np.asarray(ids, np.int64)].astype(np.float32)

    def _tokens(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(one.ids, one.offsets) for one in found]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self.tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=True)


class OnnxDecoding:
    """Captions of z_a (B, N, D_llm), mask (B, N); see `Decoding`. The tokens of a clip's beams are one tree."""

    def __init__(self, runtime: OnnxRuntime, z_a: np.ndarray, mask: np.ndarray, guide: float):
        self.runtime, size = runtime, len(z_a)
        bias = runtime.bias(z_a, mask) if guide else None
        self.bias = np.zeros((size, len(runtime.table)), np.float32) if bias is None else guide * bias  # (B, V)
        self.residual = np.float32(guide * runtime.residual)
        before, after = (runtime.embed(ids)[None].repeat(size, 0) for ids in runtime.prompt)  # (B, ., D_llm)
        x = np.concatenate([before, z_a, after], 1)  # (B, P, D_llm)
        there: np.ndarray = np.ones(x.shape[:2], bool)  # (B, P)
        there[:, before.shape[1] : before.shape[1] + z_a.shape[1]] = mask
        if not mask.all():  # padding first, the rest in its order: the last token is a clip's own
            order = np.argsort(there, 1, kind="stable")
            x, there = np.take_along_axis(x, order[..., None], 1), np.take_along_axis(there, order, 1)
        size, length, width = x.shape
        reaches = there[:, None] & np.tri(length, dtype=bool)  # (B, P, P)
        positions = np.maximum(np.cumsum(there, 1) - 1, 0)
        at, spent = np.array([length - 1]), np.zeros((size, 1, width), np.float32)
        logits, self.cache = _grow(runtime, x, positions, reaches, at, self.bias, spent, None)
        self.first = logits  # (B, 1, V)
        self.there = there

    def start(self) -> np.ndarray:
        """See `Decoding`: (B, 1, V)."""
        self.grown, self.own_bias = self.cache, self.bias
        self.reach = self.there[:, None]  # (A, k, M) which tokens each beam's last one attends to
        self.next = self.there.sum(1, keepdims=True)  # (A, 1) position of the next token
        self.said = np.zeros((len(self.there), 1, self.runtime.table.shape[1]), np.float32)  # (A, k, D_llm) sum
        return self.first.copy()

    def step(self, keep: np.ndarray, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """See `Decoding`: (A, k, V)."""
        if len(keep) < len(self.reach):
            self.grown = [_value(kept.numpy()[keep]) for kept in self.grown]
            self.own_bias, self.next = self.own_bias[keep], self.next[keep]
        size, beams = tokens.shape
        rows = keep[:, None], parents
        itself = np.broadcast_to(np.eye(beams, dtype=bool), (size, beams, beams))
        self.reach = np.concatenate([self.reach[rows], itself], 2)  # (A, k, M + k)
        x = self.runtime.embed(tokens)  # (A, k, D_llm)
        self.said = self.said[rows] + x
        positions = np.broadcast_to(self.next, tokens.shape)
        spent, at = self.residual * self.said, np.arange(beams)
        logits, self.grown = _grow(self.runtime, x, positions, self.reach, at, self.own_bias, spent, self.grown)
        self.next = self.next + 1
        return logits

    def log_probabilities(self, clips: Sequence[int], ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Decoding`; captions that begin alike share their beginning."""
        if not len(ids):
            return []
        trees = _Trees(len(self.there), clips, ids)
        x = self.runtime.embed(trees.tokens)  # (B, n, D_llm)
        above = trees.above  # (B, n, n)
        spent = self.residual * (above.astype(np.float32) @ x)
        before = self.there[:, None].repeat(above.shape[1], 1)
        positions = self.there.sum(1, keepdims=True) + above.sum(2) - 1
        at = np.arange(above.shape[1])
        reach = np.concatenate([before, above], 2)  # (B, n, P + n)
        logits, _ = _grow(self.runtime, x, positions, reach, at, self.bias, spent, self.cache)
        log_p = log_softmax(np.concatenate([self.first, logits], 1))  # (B, 1 + n, V)
        found = []
        for clip, own, path in zip(clips, ids, trees.paths, strict=True):
            found.append(log_p[clip, [0, *(node + 1 for node in path)], [*own, self.runtime.eos]])
        return found


class _Trees:
    """Captions of each clip as a tree of tokens.

    `tokens` (B, n); `above` (B, n, n) which nodes are on the way to each, itself included; `paths` the nodes of each
    caption. Clips with fewer nodes than n are filled up with nodes that see themselves alone.
    """

    def __init__(self, size: int, clips: Sequence[int], ids: Sequence[Sequence[int]]):
        nodes: list[dict[tuple[int, ...], int]] = [{} for _ in range(size)]
        self.paths = []
        for clip, own in zip(clips, ids, strict=True):
            of = nodes[clip]
            prefixes = [tuple(own[: k + 1]) for k in range(len(own))]
            self.paths.append([of.setdefault(prefix, len(of)) for prefix in prefixes])
        count = max(1, *map(len, nodes))
        self.tokens = np.zeros((size, count), np.int64)
        self.above = np.broadcast_to(np.eye(count, dtype=bool), (size, count, count)).copy()
        for clip, of in enumerate(nodes):
            for prefix, node in of.items():  # a prefix comes after its own
                self.tokens[clip, node] = prefix[-1]
                if len(prefix) > 1:
                    self.above[clip, node] |= self.above[clip, of[prefix[:-1]]]


def _grow(
    runtime: OnnxRuntime,
    x: np.ndarray,
    positions: np.ndarray,
    reach: np.ndarray,
    at: np.ndarray,
    bias: np.ndarray,
    spent: np.ndarray,
    cache: list[Any] | None,
) -> tuple[np.ndarray, list[Any]]:
    """`lamb.export.llama.Llama` on these arrays; the cache goes in and out as ONNX Runtime holds it."""
    given = {"x": x, "positions": positions, "mask": reach, "at": at, "bias": bias, "spent": spent}
    feed = {name: _value(value) for name, value in given.items() if name in runtime.inputs}
    names = [name for name in runtime.inputs if name not in given]
    if cache is None:
        _, groups, _, d = runtime.inputs[names[0]].shape
        cache = [_value(np.zeros((len(x), groups, 0, d), np.float32))] * len(names)
    logits, *grown = runtime.languages.run_with_ort_values(
        runtime.outputs, {**feed, **dict(zip(names, cache, strict=True))}
    )
    return logits.numpy(), grown


def _value(x: np.ndarray) -> Any:
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x))


def _session(file: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads take no core from others
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no base of their own
        raise EngineError(f"{file}: ONNX Runtime cannot run it ({reason(error)})", REMEDY) from None
