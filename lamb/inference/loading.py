"""Which engine runs a model: ONNX Runtime where the model has graphs and a CPU is to run it, else PyTorch. [O]"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LambError, OptionError, reason
from ..model import checkpoint
from .engine import Runtime

if TYPE_CHECKING:
    from ..model.lamb import LambModel

ENGINES = ("onnx", "torch")
FORMAT = 1  # of onnx.json and the graphs' inputs and outputs
REMEDY = "export the model again: lamb export MODEL, or load it with PyTorch (engine torch)"
TORCH = "pip install 'lamb-aac[torch]'"


class EngineError(LambError, ValueError):
    """A model that an engine cannot run: why, and which engine can."""


def runtime(
    name: str | Path, device: str | None = None, engine: str | None = None, threads: int | None = None
) -> Runtime:
    """The model `name` on its engine; see `Captioner.load`."""
    if engine not in (None, *ENGINES):
        raise OptionError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
    folder = checkpoint.find(name)
    on_cpu = device in (None, "auto", "cpu")
    graphs = (folder / "onnx.json").is_file()
    if engine == "onnx" and not on_cpu:
        raise EngineError(f"engine onnx runs on a CPU, not on {device}", "use engine torch for other devices")
    if engine == "onnx" or (engine is None and graphs and on_cpu):
        from .onnx_runtime import OnnxRuntime

        return OnnxRuntime(folder, threads or cores())
    if graphs and describe(folder)["precision"] != "float32":
        raise EngineError(f"{name}: was exported with 8-bit weights, which PyTorch does not run", "use engine onnx")
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        why = "it has no graphs" if engine is None and on_cpu else f"for {engine or device}"
        raise EngineError(f"{name}: needs PyTorch, which is not installed ({why})", TORCH) from None
    return _on_torch(folder, device, threads)


def describe(folder: Path) -> dict[str, Any]:
    """onnx.json of an exported model. EngineError for one that this lamb cannot run."""
    file = folder / "onnx.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        version = facts["format"]
    except FileNotFoundError:
        raise EngineError(
            f"{folder}: holds no graphs for ONNX Runtime",
            f"make them with lamb export {folder} --to DIR, or use engine torch",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{file}: cannot be read ({reason(error)})", REMEDY) from None
    if version != FORMAT:
        raise EngineError(f"{file}: format {version}, this lamb runs {FORMAT}", REMEDY)
    return facts


def torch_model(runtime: Runtime) -> LambModel:
    """The model of a runtime that PyTorch runs. EngineError for any other."""
    if runtime.name != "torch":
        raise EngineError("this needs the networks themselves, which only PyTorch has", f"use engine torch ({TORCH})")
    return runtime.model  # type: ignore[attr-defined]


def cores() -> int:
    """Threads that a model may use: OMP_NUM_THREADS, else the cores that this process may run on."""
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if told.isdecimal() and int(told):
        return int(told)
    return processors()


def processors() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_torch(folder: Path, device: str | None, threads: int | None) -> Runtime:
    import torch

    from .. import extensions
    from .torch_runtime import TorchRuntime

    if threads:
        torch.set_num_threads(threads)
    if device in (None, "auto"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    else:
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise checkpoint.CheckpointError(
                f"device {device!r} cannot be used ({reason(error)})", "try cpu, or cuda with a GPU"
            ) from None
    model = extensions.load(folder, str(device))
    model.merge_lora()
    return TorchRuntime(model.eval())
