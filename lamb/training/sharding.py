"""The blocks of the LLM sharded over the processes (FSDP2), for an LLM that is too large for one GPU.

Only the blocks are sharded. Embedding table, head and every other part of the model stay whole in every process: the
Token Guide reads the table, the aligner's captions are embedded by it, and a scalar such as beta cannot be split. DDP
averages the gradients of the whole parts, FSDP those of the shards. Our choice; the paper does not say.

A sharded tensor is a DTensor. Functions that make it whole are collective: all processes must call them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..config import ConfigError


def shard(model: nn.Module, llm: Any, device: torch.device) -> None:
    """Shard the blocks of `llm`, a `transformers` model inside `model`; each process keeps its shards on `device`.

    The weights must be the same in all processes. ConfigError in a single process, or for an LLM without known blocks.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        raise ConfigError("optim.shard: there is only one process; start several with torchrun, or leave it")
    kinds = set(llm._no_split_modules or ())
    blocks = [module for module in llm.modules() if type(module).__name__ in kinds]
    if not blocks:
        raise ConfigError(f"optim.shard: {type(llm).__name__} does not say what its blocks are; leave it out")
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # the model around the blocks, without parameters of its own, so that the transfers of the blocks overlap
    fully_shard(llm, mesh=mesh, ignored_params={p for p in llm.parameters() if not isinstance(p, DTensor)})
    # FSDP would guess the order from the forward passes so far, of which the first process has more: its checks.
    for before, block in zip([*blocks[:1], *blocks], blocks, strict=False):
        block.set_modules_to_backward_prefetch([before])
    sharded = [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sharded)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every process holds all weights and may use `model` on its own, except for its state_dict()."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    yield
    for part in parts:
        part.reshard()
        part.set_reshard_after_forward(True, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """`tensor`, made whole if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_as(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole `tensor`, equal in all processes, moved to the device of `other` and sharded like it."""
    tensor = tensor.to(other.device)
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def to_cpu(value: Any, keep: bool) -> Any:
    """Nested dicts with all tensors whole and on the CPU, or None in processes that do not `keep` them."""
    if isinstance(value, dict):
        return {key: to_cpu(item, keep) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return value
    gathered_value = whole(value)  # by all processes
    return gathered_value.cpu() if keep else None


def apart(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Sharded and whole tensors in separate lists: PyTorch's functions of many tensors do not take both at once."""
    lists: dict[bool, list[Tensor]] = {}
    for tensor in tensors:
        lists.setdefault(isinstance(tensor, DTensor), []).append(tensor)
    return list(lists.values())


def clip_grad_norm(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `limit`; returns the norm before."""
    kinds = apart(p for p in parameters if p.grad is not None)
    norms = [whole(get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for kind in kinds:
        clip_grads_with_norm_(kind, limit, norm)
    return norm
