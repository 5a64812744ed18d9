"""A `LambModel` on PyTorch as a `Runtime`: any encoder, any language model of `transformers`, any device."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.lamb import LambModel, caption_labels
from ..model.padding import pad
from .engine import Runtime, space_of


class TorchRuntime(Runtime):
    """See `Runtime`; `model` stays where it is."""

    name = "torch"

    def __init__(self, model: LambModel):
        self.model, self.threads = model.eval(), torch.get_num_threads()
        tokenizer = model.llm.tokenizer
        self.sample_rate, self.frame_rate = model.encoder.sample_rate, model.encoder.frame_rate
        self.dim = model.encoder.dim
        self.eos, self.vocabulary = tokenizer.eos_token_id, tokenizer.get_vocab()

    @property
    def config(self):  # type: ignore[override]  # the model's own, which may be replaced
        return self.model.config

    @property
    def labels(self):  # type: ignore[override]
        return self.model.encoder.labels

    @property
    def device(self) -> str:  # type: ignore[override]
        return str(self.model.device)

    @property
    def space(self) -> str:  # type: ignore[override]
        adapter = {f"adapter.{name}": _arrays(value)[0] for name, value in self.model.adapter.state_dict().items()}
        return space_of(adapter, _arrays(self.model.llm.embedding_matrix.detach())[0])

    def share(self, ways: int) -> None:
        torch.set_num_threads(max(1, self.threads // ways))

    @torch.inference_mode()
    def encode(self, x: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h_a, there = _arrays(*self.model.encode(*self._tensors(x, mask)))
        return h_a, there

    @torch.inference_mode()
    def audio_tokens(self, h_a: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z_a, there = _arrays(*self.model.audio_tokens(*self._tensors(h_a, mask)))
        return z_a, there

    @torch.inference_mode()
    def tag(self, h_a: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens, there = self._tensors(h_a, mask)
        clip, frame = _arrays(self.model.encoder.tag(tokens, there), self.model.encoder.tag_frames(tokens))
        return clip, frame

    @torch.inference_mode()
    def bias(self, z_a: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        bias = self.model.bias(*self._tensors(z_a, mask))  # (B, 1, V)
        return None if bias is None else _arrays(bias[:, 0])[0]

    def decoding(self, z_a: np.ndarray, mask: np.ndarray, guide: float) -> TorchDecoding:
        return TorchDecoding(self.model, *self._tensors(z_a, mask), guide)

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> np.ndarray:
        return _arrays(self.model.llm.embed(torch.tensor(ids, dtype=torch.long, device=self.model.device)))[0]

    def _tokens(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        tokens: Any = self.model.llm.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
        return list(zip(tokens["input_ids"], tokens["offset_mapping"], strict=True))

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return [self.model.llm.tokenizer.decode(list(row), skip_special_tokens=True) for row in rows]

    def _tensors(self, x: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        device = self.model.device
        return torch.from_numpy(x).to(device), torch.from_numpy(mask).to(device)


READ = 2**25  # logits that are held at once while captions are read: 134 MB as float32


class TorchDecoding:
    """Captions of z_a (B, N, D_llm), mask (B, N); see `Decoding`. A beam has its own row in the key-value cache.

    The prompts are read once, for the search and for captions that are given."""

    def __init__(self, model: LambModel, z_a: Tensor, mask: Tensor, guide: float):
        self.model, self.guide = model, guide
        with torch.inference_mode():
            self.prefix, self.prefix_mask = model.llm.prefix(z_a, mask)  # (B, P, D_llm), (B, P)
            self.prompt_bias = model.bias(z_a, mask) if guide else None  # (B, 1, V)
            self.first, self.prompts = self._read(self.prefix, self.prefix_mask, None)  # (B, 1, V)

    @torch.inference_mode()
    def start(self) -> np.ndarray:
        """See `Decoding`: (B, 1, V)."""
        size = len(self.prefix)
        self.beams = 1
        self.ids = torch.zeros(size, 0, dtype=torch.long, device=self.prefix.device)  # (A k, L)
        self.mask, self.bias, self.cache = self.prefix_mask, self.prompt_bias, copy.deepcopy(self.prompts)
        return self._guided(self.first, self.bias, self.ids).cpu().numpy()

    @torch.inference_mode()
    def step(self, keep: np.ndarray, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """See `Decoding`: (A, k, V)."""
        device = self.ids.device
        rows = torch.from_numpy((self.beams * keep[:, None] + parents).reshape(-1)).to(device)  # (A k,)
        last = torch.from_numpy(tokens.reshape(-1, 1)).to(device)  # (A k, 1)
        self.beams = parents.shape[1]
        self.cache.reorder_cache(rows)
        self.ids = torch.cat([self.ids[rows], last], 1)
        self.mask = torch.cat([self.mask[rows], torch.ones_like(last, dtype=torch.bool)], 1)
        self.bias = None if self.bias is None else self.bias[rows]
        logits, self.cache = self._read(self.model.llm.embed(last), self.mask, self.cache)
        return self._guided(logits, self.bias, self.ids).reshape(*parents.shape, -1).cpu().numpy()

    @torch.inference_mode()
    def log_probabilities(self, clips: Sequence[int], ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Decoding`."""
        found: list[np.ndarray] = []
        longest = max(map(len, ids), default=0) + 1
        size = max(1, READ // (longest * self.first.shape[-1]))  # captions at once
        for k in range(0, len(ids), size):
            found += self._log_probabilities(clips[k : k + size], ids[k : k + size])
        return found

    def _log_probabilities(self, clips: Sequence[int], ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        llm, rows = self.model.llm, torch.tensor(clips, device=self.prefix.device)
        tokens, valid = pad([torch.tensor(own, dtype=torch.long) for own in ids], llm.tokenizer.eos_token_id)
        tokens, valid = tokens.to(rows.device), valid.to(rows.device)  # (K, L)
        logits = self.first[rows]  # (K, 1, V)
        if tokens.shape[1]:
            cache = copy.deepcopy(self.prompts)
            cache.reorder_cache(rows)
            # what lies behind a caption's own tokens does not matter to them: attention is causal
            mask = torch.cat([self.prefix_mask[rows], torch.ones_like(valid)], 1)
            logits = torch.cat([logits, self._read(llm.embed(tokens), mask, cache)[0]], 1)  # (K, L + 1, V)
        bias = None if self.prompt_bias is None else self.prompt_bias[rows]
        logits = self._guided(logits, bias, tokens)
        labels = caption_labels(tokens, valid, llm.tokenizer.eos_token_id)  # (K, L + 1)
        log_p = logits.gather(2, labels.clamp_min(0)[..., None])[..., 0] - logits.logsumexp(-1)
        return [row[: len(own) + 1] for row, own in zip(log_p.cpu().numpy(), ids, strict=True)]

    def _read(self, embeddings: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Embeddings (R, n, D_llm) of what is not in the cache, mask (R, m + n) of all -> logits and the cache.

        The logits are float32, raw: (R, 1, V) of what follows a prompt, (R, n, V) of what follows each token after it.
        """
        positions = {}
        if not self.prefix_mask.all():
            positions["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -embeddings.shape[1] :]
        out = self.model.llm.model(
            inputs_embeds=embeddings,
            attention_mask=mask.long(),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1 if cache is None else embeddings.shape[1],
            **positions,
        )
        return out.logits.float(), out.past_key_values

    def _guided(self, logits: Tensor, bias: Tensor | None, ids: Tensor) -> Tensor:
        """Raw logits (R, n, V) of the last n tokens that follow a prompt and `ids` (R, L) -> guided, the same shape."""
        if bias is None:
            return logits
        steps: Any = self.model.step_bias(bias, ids, last=logits.shape[1] == 1)  # (R, 1 or L + 1, V)
        return logits + self.guide * steps


def _arrays(*tensors: Tensor) -> Any:
    """On the CPU; floats as float32."""
    return tuple((t.float() if t.is_floating_point() else t).cpu().numpy() for t in tensors)
