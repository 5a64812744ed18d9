"""How well a model predicts captions that people, or a phrase bank, wrote: their cross entropy as it would decode. [O]

    nats(clip) = -sum_t log softmax(logits_t + bias_t)[y_t]      over the tokens of a caption and its end

where bias_t is the guide's, if the model has one. Of two models around the same language model, the one with the lower
cross entropy has heard more of the clip; it resolves smaller differences than a score of generated captions does.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from ..audio.reader import AudioError
from ..data.manifest import Clip
from ..inference.engine import Engine
from ..inference.recording import hear
from ..model.lamb import LambModel
from ..model.padding import pad


@torch.inference_mode()
def caption_nats(model: LambModel, clips: Sequence[Clip]) -> list[tuple[float, int]]:
    """-log p, in nats, and the tokens of every clip's first caption with its end; AudioError for a bad clip."""
    return [found for group in _groups(model, clips) for found in group]


def _groups(model: LambModel, clips: Sequence[Clip]) -> Iterator[list[tuple[float, int]]]:
    rest, options = iter(clips), model.config.decode
    for group in hear(Engine(model), clips, options):
        tokens = []
        for recording in group:
            if recording.h_a is None:
                raise recording.error or AudioError(recording.name, "holds no sound", "leave it out of the manifest")
            tokens.append(recording.h_a)
        captions = [clip.captions[0] for clip in islice(rest, len(group))]
        for k in range(0, len(tokens), options.batch_size):
            h_a, mask = pad(tokens[k : k + options.batch_size])  # (B, N_a, D), (B, N_a)
            ids, ids_mask = model.llm.tokenize(captions[k : k + options.batch_size])  # (B, L)
            output = model(h_a.to(model.device), mask.to(model.device), ids, ids_mask, encoded=True)
            logits = output.logits.float()  # (B, L + 1, V)
            if output.bias is not None:
                logits = logits + options.guide * output.bias
            there = output.labels != -100  # (B, L + 1)
            log_p = logits.log_softmax(-1).gather(2, output.labels.clamp_min(0)[..., None])[..., 0]
            yield list(zip((-log_p * there).sum(1).tolist(), there.sum(1).tolist(), strict=True))
