"""Captions of audio tokens by a `LambModel` on PyTorch, for tests that begin behind the adapter."""

from torch import Tensor

from lamb.config import DecodeConfig
from lamb.inference import generation
from lamb.inference.generation import Hypothesis
from lamb.inference.torch_runtime import TorchRuntime
from lamb.model.lamb import LambModel


def generate(
    model: LambModel, z_a: Tensor, mask: Tensor, options: DecodeConfig, n_best: int = 1, seed: int | None = None
) -> list[list[Hypothesis]]:
    """z_a (B, N, D_llm), mask (B, N) -> what `lamb.inference.generation.generate` finds."""
    runtime = TorchRuntime(model)
    decoding = runtime.decoding(z_a.detach().float().cpu().numpy(), mask.cpu().numpy(), options.guide)
    return generation.generate(runtime, decoding, options, n_best, seed)
