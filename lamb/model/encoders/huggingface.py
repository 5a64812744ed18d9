"""Any `transformers` audio encoder that yields a time sequence, behind the contract of `base.py`.

All of it is our choice: the paper uses CED. A family of encoders is one function and one line in `FAMILIES`.
Letters: B clips, T samples, M pieces of clips, n tokens a piece, N tokens of the longest clip, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..padding import pad
from .base import Encoder


@dataclass(frozen=True)
class Family:
    """What differs between the families of encoders."""

    encoder: Any  # the audio part of the loaded model
    dim: int  # D
    frame_rate: float  # tokens a second
    window: int | None = None  # samples of the encoder's fixed input; None: a clip of any length
    order: Callable[[Tensor], Tensor] = lambda hidden: hidden  # last hidden state -> time-ordered (M, n, D)


def _ast(model: Any, extractor: Any) -> Family:
    """Two class tokens, then the patches, frequency-major; 100 frames a second."""
    rows, columns = model.embeddings.get_shape(model.config)
    return Family(
        encoder=model,
        dim=model.config.hidden_size,
        frame_rate=columns * 100 / extractor.max_length,
        window=extractor.max_length * extractor.sampling_rate // 100,
        # (M, 2 + rows * columns, D)
        order=lambda hidden: hidden[:, 2:].unflatten(1, (rows, columns)).mean(1),
    )


def _clap(model: Any, extractor: Any) -> Family:
    """HTSAT folds time into the strips of a square image; its last hidden state has them in a line again."""
    htsat = model.audio_model.audio_encoder
    columns = htsat.input_resolutions[-1][1] * htsat.freq_ratio
    return Family(
        encoder=model.audio_model,
        dim=htsat.num_features,
        frame_rate=columns / extractor.max_length_s,
        window=extractor.nb_max_samples,
        # (M, D, rows, columns)
        order=lambda hidden: hidden.mean(2).transpose(1, 2),
    )


def _whisper(model: Any, extractor: Any) -> Family:
    return Family(
        encoder=model.encoder,
        dim=model.config.d_model,
        frame_rate=model.config.max_source_positions / extractor.chunk_length,
        window=extractor.n_samples,
    )


def _raw(model: Any, extractor: Any) -> Family:
    """wav2vec 2.0 and its like: convolutions over the waveform, no fixed length."""
    return Family(
        encoder=model,
        dim=model.config.hidden_size,
        frame_rate=extractor.sampling_rate / model.config.inputs_to_logits_ratio,
    )


FAMILIES: dict[str, Callable[[Any, Any], Family]] = {  # by the `model_type` of the config
    "audio-spectrogram-transformer": _ast,
    "clap": _clap,
    "whisper": _whisper,
    "data2vec-audio": _raw,
    "hubert": _raw,
    "unispeech-sat": _raw,
    "wav2vec2": _raw,
    "wavlm": _raw,
}


class HuggingFaceEncoder(Encoder):
    """Waveform -> time-ordered tokens of a frozen encoder; see `Encoder`.

    A clip longer than the encoder's fixed input is cut into pieces of that length, whose tokens follow each
    other; nothing is cropped. A shorter piece is filled up as its feature extractor does it, and of its n tokens
    those that begin within it are kept: ceil(n * samples / window). No gradient reaches the waveform.
    """

    def __init__(self, model: Any, extractor: Any) -> None:
        """model: of a type in `FAMILIES`, as `AutoModel` gives it; extractor: its feature extractor."""
        super().__init__()
        family = FAMILIES[model.config.model_type](model, extractor)
        self.encoder = family.encoder.requires_grad_(False)
        self.extractor = extractor
        self.sample_rate: int = extractor.sampling_rate  # Hz
        self.frame_rate, self.dim = family.frame_rate, family.dim
        self.window, self.order = family.window, family.order
        self.train(self.training)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """The encoder of a hub id or local folder, in float32; code and pickles that come with a model are never run.

        FileNotFoundError: no such folder. ValueError: a model of another kind, or weights are missing.
        OSError: the hub does not have it or cannot be reached, or files are missing or broken.
        """
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

        path = Path(source)
        if not path.is_dir() and (isinstance(source, Path) or path.is_absolute() or len(path.parts) > 2):
            raise FileNotFoundError(f"no model folder at {source}; give a folder or a Hugging Face hub id")
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            kind = config.model_type + (" with an adapter" if getattr(config, "add_adapter", False) else "")
            if kind not in FAMILIES:
                raise ValueError(
                    f"{source} holds a model of type {kind!r}, not an audio encoder that lamb knows; "
                    f"give one of {', '.join(FAMILIES)}"
                )
            extractor = AutoFeatureExtractor.from_pretrained(source, trust_remote_code=False)
            # without a dtype, transformers 5 keeps that of the checkpoint
            model, report = AutoModel.from_pretrained(
                source,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,  # pytorch_model.bin is a pickle
                output_loading_info=True,
            )
        except OSError as error:
            raise OSError(
                f"{source} could not be loaded: {error}\nCheck the id and the network, or give a local folder "
                "with config.json, preprocessor_config.json and model.safetensors"
            ) from error
        encoder = cls(model, extractor)
        # transformers fills missing weights with random numbers
        used = {id(weight) for weight in encoder.parameters()}
        names = {name for name, weight in model.named_parameters() if id(weight) in used}
        names.discard("masked_spec_embed")  # serves training only, and checkpoints often lack it
        missing = sorted(names & report["missing_keys"])
        if missing:
            raise ValueError(
                f"{source} has no weights for {', '.join(missing[:8])} ({len(missing)} missing); "
                "give a complete checkpoint"
            )
        return encoder

    def train(self, mode: bool = True) -> Self:
        """The frozen encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """waveform (B, T), mask (B, T) bool -> tokens (B, N, D), zero where padded, mask (B, N) bool."""
        waveform = waveform.detach().float()
        clips = [clip[there].cpu().numpy() for clip, there in zip(waveform, mask, strict=True)]
        if self.window is None:
            # one by one: some of these models normalise over time, padding included
            tokens = [self._tokens([clip])[0] for clip in clips]  # B x (n, D)
        else:
            starts = [(i, at) for i, clip in enumerate(clips) for at in range(0, len(clip), self.window)]
            pieces = [clips[i][at : at + self.window] for i, at in starts]
            kept: list[list[Tensor]] = [[] for _ in clips]
            # hidden: (n, D)
            for (i, _), piece, hidden in zip(starts, pieces, self._tokens(pieces), strict=True):
                kept[i].append(hidden[: math.ceil(len(hidden) * len(piece) / self.window)])
            tokens = [torch.cat(hidden) for hidden in kept]
        return pad(tokens)

    def _tokens(self, pieces: list[np.ndarray]) -> Tensor:
        """M waveforms, none longer than the window -> (M, n, D)."""
        # the last piece of a clip can be too short for a single frame: at least 0.1 s
        pieces = [np.pad(piece, (0, max(0, self.sample_rate // 10 - len(piece)))) for piece in pieces]
        features = self.extractor(pieces, sampling_rate=self.sample_rate, return_tensors="pt")
        name = self.encoder.main_input_name
        inputs = {name: features[name].to(self.encoder.device, self.encoder.dtype)}
        if "is_longer" in features:  # CLAP's extractor sets it for a random clip of the batch if none is
            inputs["is_longer"] = torch.zeros_like(features["is_longer"])
        return self.order(self.encoder(**inputs).last_hidden_state)
