"""The two networks of FENSE: Sentence-BERT for the similarity of meaning, and a detector of fluency errors.

    FENSE = mean cosine of the candidate and its references, divided by 10 if the probability of an error is above 0.9

Zhou et al. 2022, "Can audio captions be evaluated with image caption metrics?". SPIDEr-FL uses the same detector.

Letters: S clips, D width of the BERT.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OptionError
from .metrics import Floats
from .reference_metrics import Round
from .resources import DOWNLOAD, SBERT, Unavailable, detector_file

THRESHOLD = 0.9  # a caption loses a part of its score if the probability of an error is above this
PENALTY = 0.9  # that part; both as in FENSE


class Sentences:
    """Sentence-BERT: how similar two captions are in meaning. Reimers and Gurevych 2019."""

    def __init__(self, name: str = SBERT) -> None:
        """`name`: a model of sentence-transformers that is on this machine, or a folder."""
        if find_spec("sentence_transformers") is None:
            raise Unavailable("sentence-transformers is not installed", "pip install 'lamb-aac[eval]'")
        from sentence_transformers import SentenceTransformer

        if os.sep in name and not os.path.isdir(name) and name.count("/") != 1:
            raise OptionError(f"{name}: no such folder", "--sbert takes a model of sentence-transformers or a folder")
        with _quiet():
            try:
                self.model = SentenceTransformer(name, local_files_only=True)
            except (OSError, ValueError) as error:
                remedy = DOWNLOAD if name == SBERT else f"{DOWNLOAD} --sbert {name}"
                raise Unavailable(f"the sentence model {name} is not on this machine", remedy) from error

    def similarity(self, rounds: Sequence[Round]) -> list[Floats]:
        """For each round (S,): mean cosine of a candidate and its references; 0 for a candidate without words."""
        texts = sorted({text for candidates, groups in rounds for text in chain(candidates, *groups)})
        vectors = self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False, batch_size=64)
        of = dict(zip(texts, np.asarray(vectors, dtype=np.float64), strict=True))
        return [
            np.array(
                [
                    float(np.mean([of[text] @ of[candidate] for text in group])) if candidate else 0.0
                    for candidate, group in zip(candidates, groups, strict=True)
                ]
            )
            for candidates, groups in rounds
        ]


class FluencyDetector:
    """The detector of FENSE: a linear layer on the first token of a BERT classifies the errors in a sentence.

    The last class is any error at all. A checkpoint holds `model_type` (the name of the BERT, for its configuration and
    tokenizer), `num_classes` and `state_dict`.
    """

    def __init__(self, file: Path | None = None) -> None:
        import torch

        file = file or detector_file()
        if not file.is_file():
            raise Unavailable("FENSE's error detector is not here (440 MB)", DOWNLOAD)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            kind, classes = str(state["model_type"]), int(state["num_classes"])
            weights = {k: v for k, v in state["state_dict"].items() if k != "encoder.embeddings.position_ids"}
        except Exception as error:  # torch.load raises many kinds for a file of another kind
            raise Unavailable(f"{file} cannot be read as a detector", f"rm '{file}' && {DOWNLOAD}") from error
        self.model = self._build(kind, classes)
        self.model.load_state_dict(weights)
        self.model.eval()

    def _build(self, kind: str, classes: int) -> Any:
        """The network with random weights; it has the configuration and tokenizer of the BERT `kind`."""
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(kind, **options)
            self.tokenizer = AutoTokenizer.from_pretrained(kind, **options)
        except OSError as error:
            raise Unavailable(f"the tokenizer of {kind}, for FENSE's error detector, is not here", DOWNLOAD) from error
        encoder = AutoModel.from_config(config)
        return torch.nn.ModuleDict({"encoder": encoder, "clf": torch.nn.Linear(config.hidden_size, classes)})

    def probability(self, texts: Sequence[str], batch: int = 64) -> Floats:
        """The probability that each text has an error, (len(texts),)."""
        import torch

        found: list[float] = []
        plain = [re.sub(r"[^\w\s]", "", text).lower() for text in texts]
        for k in range(0, len(plain), batch):
            tokens = self.tokenizer(
                plain[k : k + batch], truncation=True, padding=True, max_length=64, return_tensors="pt"
            )
            with torch.inference_mode():
                first = self.model["encoder"](**tokens).last_hidden_state[:, 0]  # (B, D)
                found += self.model["clf"](first)[:, -1].sigmoid().tolist()
        return np.array(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars of the libraries within the block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
