"""The LLM's blocks shared out over the processes (FSDP2), for one that is too large for each GPU to hold.

Only the blocks are sharded. Embedding table, head and every other part of the model stay whole in every process: the
Token Guide reads the table, the aligner's captions are embedded by it, and a scalar such as beta cannot be cut. DDP
averages the gradients of what is whole, FSDP those of the shards. Our choice; the paper does not say.

What is sharded is a DTensor. Every function here that makes it whole is collective: all processes call it.
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
    """Share out the blocks of `llm`, a model of `transformers` inside `model`; each process keeps its part on `device`.

    The weights must be the same in all processes. ConfigError in a single process, or for an LLM without known blocks.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        raise ConfigError("optim.shard: one process has nobody to share with; start several with torchrun, or leave it")
    kinds = set(llm._no_split_modules or ())
    blocks = [module for module in llm.modules() if type(module).__name__ in kinds]
    if not blocks:
        raise ConfigError(f"optim.shard: {type(llm).__name__} does not say what its blocks are; leave it out")
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # around them, without parameters of its own: the blocks' transfers overlap
    fully_shard(llm, mesh=mesh, ignored_params={p for p in llm.parameters() if not isinstance(p, DTensor)})
    # Said, as FSDP would guess it from the forward passes so far, and the first process has more: those of its checks.
    for before, block in zip([*blocks[:1], *blocks], blocks, strict=False):
        block.set_modules_to_backward_prefetch([before])
    sharded = [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sharded)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every process holds all weights, and each may use `model` on its own; not its state_dict()."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    yield
    for part in parts:
        part.reshard()
        part.set_reshard_after_forward(True, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """`tensor` itself, or all of one that is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_as(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole `tensor`, the same in every process, on the device of `other` and sharded as that is."""
    tensor = tensor.to(other.device)
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def to_cpu(value: Any, keep: bool) -> Any:
    """Nested dicts with their tensors whole and on the CPU; without them in the processes that need not `keep` them."""
    if isinstance(value, dict):
        return {key: to_cpu(item, keep) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return value
    all_of_it = whole(value)
    return all_of_it.cpu() if keep else None


def apart(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Sharded and whole ones in two lists: PyTorch's functions of many tensors do not take both together."""
    lists: dict[bool, list[Tensor]] = {}
    for tensor in tensors:
        lists.setdefault(isinstance(tensor, DTensor), []).append(tensor)
    return list(lists.values())


def clip_grad_norm(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale the gradients down to a norm of at most `limit`, that of all together; returns the norm before."""
    kinds = apart(p for p in parameters if p.grad is not None)
    norms = [whole(get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for kind in kinds:
        clip_grads_with_norm_(kind, limit, norm)
    return norm
