"""The losses of a step, and a caption, of a tiny model on a GPU that is none; test_devices.py runs it on its own.

Its tensors say they are on the device "pretended" and compute on the CPU. An operation of one of them with one on the
CPU is an error, as it is on a GPU (scalars and indices aside).

    pretended_gpu.py CONFIG...
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SENTENCES
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from lamb.config import LambConfig, from_dict
from lamb.extensions import build
from lamb.model.aligner import gap
from lamb.model.lamb import LambModel
from lamb.model.losses import loss_terms


class OnGPU(torch.Tensor):
    """Wraps a tensor on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnGPU":
        options = {"dtype": inner.dtype, "device": torch.device("pretended:0"), "strides": inner.stride()}
        found = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **options)  # type: ignore[attr-defined]
        found.held = inner
        return found

    def tolist(self) -> Any:
        return self.held.tolist()

    def new_tensor(self, data: Any, **_: Any) -> torch.Tensor:
        return self.held.new_tensor(data).to(GPU)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:  # looks for a GPU's kernel
            return attention(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_one_device(function, args, kwargs or {})


class Pretend(TorchDispatchMode):
    """Makes tensors on the GPU, where no tensor there is at hand yet."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_one_device(function, args, kwargs or {})


# what takes indices, or lengths, from the CPU
MIXED = {"aten::index.Tensor", "aten::index_put", "aten::index_put_", "aten::_pack_padded_sequence"}


def on_one_device(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, device = function.name(), kwargs.get("device")
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = any(isinstance(x, OnGPU) for x in tensors)
    if there and "copy" not in name and name not in MIXED and any(x.ndim and not isinstance(x, OnGPU) for x in tensors):
        raise RuntimeError(f"{name}: tensors on two devices")
    if device is not None:
        there = torch.device(device) == GPU
        kwargs = {**kwargs, "device": "cpu"}
    held_args, held_kwargs = tree_map_only(OnGPU, lambda x: x.held, (args, kwargs))
    out = (gru_cell if "fused_gru_cell" in name else function)(*held_args, **held_kwargs)
    if function._schema.is_mutable and not function._schema.name.endswith("out"):
        return args[0]
    if name == "aten::_pack_padded_sequence":
        return OnGPU(out[0]), out[1]  # lengths stay on the CPU
    return tree_map_only(torch.Tensor, OnGPU, out) if there else out


def gru_cell(of_input: Any, of_state: Any, state: Any, bias: Any, state_bias: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel that GPUs have and CPUs have not."""
    (r, z, n), (r_s, z_s, n_s) = (of_input + bias).chunk(3, 1), (of_state + state_bias).chunk(3, 1)
    z, n = (z + z_s).sigmoid(), (n + (r + r_s).sigmoid() * n_s).tanh()
    return n + z * (state - n), of_input


def attention(q: Any, k: Any, v: Any, attn_mask: Any = None, is_causal: bool = False, **_: Any) -> torch.Tensor:
    weights = q @ k.mT / q.shape[-1] ** 0.5
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else weights + attn_mask
    return weights.softmax(-1) @ v


def step(model: LambModel) -> None:
    from lamb.inference.captioner import Captioner

    model = model.train().to(GPU)
    if hasattr(model.encoder, "spec_augment"):
        model.encoder.spec_augment = True
    lengths = torch.tensor([8000, 6000, 7000, 3000])
    waveform, mask = torch.randn(4, 8000).to(GPU), (torch.arange(8000) < lengths[:, None]).to(GPU)
    ids, ids_mask = model.llm.tokenize(SENTENCES[:4])
    with torch.no_grad():
        output = model(waveform, mask, ids, ids_mask)
        terms = loss_terms(model, output)
    terms |= gap(output.z_a, output.z_a_mask, output.z_t, output.z_t_mask)
    assert all(term.device == GPU and term.isfinite() for term in terms.values()), terms
    model.merge_lora()
    assert Captioner(model).caption([(waveform[0].held.numpy(), 16000)], n_best=2)[0].ok


def main() -> None:
    torch.manual_seed(0)
    # before anything is pretended: `transformers` looks for the "meta" device when it loads a model, and would leave
    # the frequencies of the rotary embedding as the memory happens to be
    models = [build(from_dict(LambConfig, json.loads(Path(path).read_text()))) for path in sys.argv[1:]]
    module = SimpleNamespace(is_available=lambda: True, current_device=lambda: 0, device_count=lambda: 1)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    module._is_in_bad_fork, module.manual_seed_all = lambda: False, lambda seed: None
    backend_registration._setup_privateuseone_for_python_backend("pretended", backend_module=module)
    global GPU
    GPU = torch.device("pretended:0")
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else nullcontext()  # its views want a real device
    made = torch.tensor
    torch.tensor = lambda data, device=None, **options: made(data, **options).to(device)  # would ask the device itself
    with Pretend():
        x = torch.ones(3).to(GPU)
        assert x.device == GPU
        assert (x + torch.zeros(3, device=GPU)).sum().item() == 3
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.ones(3)
        for model in models:
            step(model)


if __name__ == "__main__":
    main()
