"""The objective (paper section 5): L = l1 * L_cma + l2 * L_tg + l3 * L_dec, as named terms in one dict.

L_cma is the aligner's weighted sum; L_tg and L_dec are cross entropies on the guided and on the raw logits.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from .lamb import LambModel, Output


def cross_entropy(logits: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Mean over the labelled tokens, in fp32: logits (B, L, V), labels (B, L), -100 for none, bias (B, 1 or L, V)."""
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        if bias is not None:
            logits = logits + bias
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def token_share(labels: Tensor) -> Tensor | float:
    """`share_of` the labelled tokens: of labels (B, L) all but -100."""
    return share_of((labels != -100).sum())


def share_of(count: Tensor) -> Tensor | float:
    """What this process has, such as tokens, against the mean of all processes; 1 in a single one.

    A mean over the process's own tokens, times this, averages over the processes to the mean over all tokens.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 1.0
    count = count.float()
    total = count.clone()
    dist.all_reduce(total)
    return count * dist.get_world_size() / total


def weights_of(counts: Sequence[int], device: torch.device) -> list[float]:
    """What each batch of a step counts, 1 on average, so that the mean of their means is a mean over all tokens.

    Args:
        counts: the tokens of each batch, in this process.
    """
    total = torch.tensor(counts, dtype=torch.float64, device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return (total * len(counts) / total.sum()).tolist()


def loss_terms(model: LambModel, output: Output, weight: float = 1.0) -> dict[str, Tensor]:
    """Every term by name, unweighted, and their weighted sum as "loss".

    The cross entropies are multiplied by the `weight` of the batch among those of a step; see `weights_of`.
    """
    weights = model.config.loss
    terms: dict[str, Tensor] = {}
    scale: dict[str, float] = {}
    if model.aligner is not None and weights.alignment:
        terms |= model.aligner(output.z_a, output.z_a_mask, output.z_t, output.z_t_mask)
        scale |= {name: weights.alignment * weight for name, weight in model.aligner.weights.items()}
    share = weight * token_share(output.labels)
    if output.bias is not None and weights.guided:
        terms["guided"] = share * cross_entropy(output.logits, output.labels, output.bias)
        scale["guided"] = weights.guided
    if weights.plain:
        terms["plain"] = share * cross_entropy(output.logits, output.labels)
        scale["plain"] = weights.plain
    assert terms.keys() == scale.keys()
    total = sum((scale[name] * term for name, term in terms.items()), torch.zeros((), device=output.z_a.device))
    return {"loss": total, **terms}
