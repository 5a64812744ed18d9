"""Models on disk: a folder of `lamb.json` (format, version, configuration, facts) and `model.safetensors`.

A checkpoint holds what was trained (adapter, aligner, guide, LoRA, or whole parts that were trained in full). Encoder
and LLM come from the sources that the configuration names; where it names none, they are stored as well, the LLM with
its configuration and tokenizer in `llm/`. A checkpoint that stores both is a standalone one. Loading is strict: a
missing or an unexpected tensor is an error.
"""

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ExtensionsConfig, LambConfig, from_dict, to_dict
from ..errors import LambError, reason

if TYPE_CHECKING:  # torch takes seconds to import, and `describe` does not need it
    from torch import Tensor

    from .lamb import LambModel

FORMAT, VERSION = "lamb", 2
EXTENSIONS = to_dict(ExtensionsConfig())  # all off
BASES = "encoder", "llm"  # the parts that have a source
BUNDLED = Path(__file__).parents[1] / "bundled"
FILES = (
    "lamb.json",
    "model.safetensors",
    "llm/*.json",
    "onnx.json",
    "*.onnx",
    "README.md",
    "ATTRIBUTION.csv",
)  # nothing else travels
STATISTICS = (
    "running_mean",
    "running_var",
    "num_batches_tracked",
)  # buffers of BatchNorm, not parameters


class CheckpointError(LambError, ValueError):
    """A model that cannot be loaded or saved: its name, the problem and the remedy."""


def save(
    model: "LambModel",
    folder: str | Path,
    *,
    stored: Collection[str] = BASES,
    card: Mapping[str, str],
    half: bool = False,
    decode: Mapping[str, Any] | None = None,
    write: bool = True,
) -> Path:
    """Write `model` into `folder`. A model that is already there is replaced once the new one is complete.

    Args:
        stored: which of encoder and LLM are stored too; the other ones stay where `source` in the configuration says.
        card: facts for people, such as trained_on and licence.
        half: whether floats are stored as fp16. A CPU computes in float32 all the same.
        decode: decoding options that replace those of the model's configuration.
        write: False in the processes that only contribute their part of a sharded model.

    Raises CheckpointError for a model that cannot be stored in this way.
    """
    import torch
    from safetensors.torch import save_file
    from torch.distributed.tensor import DTensor

    config = model.config
    if "encoder" in stored:
        if model.encoder.options is None:
            raise CheckpointError(f"{folder}: an encoder of kind {config.encoder.name} can only be saved by reference")
        config = replace(config, encoder=replace(config.encoder, source=None, options=model.encoder.options))
    if "llm" in stored:
        config = replace(config, llm=replace(config.llm, source=None))
    for part, base in (("encoder", model.encoder), ("llm", model.llm)):
        if part not in stored and getattr(config, part).source is None:
            raise CheckpointError(f"{folder}: the {part} has no source to refer to; store it with the model")
        if getattr(config, part).train == "lora" and not any(p.requires_grad for p in base.parameters()):
            raise CheckpointError(f"{folder}: the {part}'s LoRA is merged or frozen; save the model as it was trained")
    if decode:
        config = replace(config, decode=replace(config.decode, **decode))
    weights = {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).cpu().contiguous()  # gathered from all processes
        for name, t in tensors(model, stored).items()
    }
    if not write:
        return Path(folder)
    if half:
        weights = {name: t.to(torch.float16) if t.is_floating_point() else t for name, t in weights.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "standalone": set(BASES) <= set(stored),
        "card": dict(card),
        "config": to_dict(config),
    }
    if config.llm.source is not None and config.llm.train != "full":  # else its own weights are in the checkpoint
        facts["llm"] = model.llm.identity()
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as scratch:
        new = Path(scratch)
        (new / "lamb.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if "llm" in stored:
            model.llm.model.config.save_pretrained(new / "llm")
            model.llm.tokenizer.save_pretrained(new / "llm")
        save_file(weights, new / "model.safetensors")
        shutil.copymode(new / "lamb.json", new / "model.safetensors")  # safetensors makes the file private
        for name in ("llm/**/*", "model.safetensors", "lamb.json"):
            for file in filter(Path.is_file, new.glob(name)):
                target = folder / file.relative_to(new)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    return folder


def tensors(model: "LambModel", stored: Collection[str] = BASES) -> dict[str, "Tensor"]:
    """The tensors of `model` that a checkpoint holds, by name; tied ones are stored once, under the first name."""
    bases = {"encoder": model.config.encoder.train, "llm": model.config.llm.train}
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():  # tied tensors are one object
        part = name.partition(".")[0]
        # a part that was trained in full is stored with its buffers: the statistics of BatchNorm changed too
        own = part in stored or part not in bases or tensor.requires_grad or bases[part] == "full"
        if own and id(tensor) not in seen:
            kept[name] = tensor.detach()
            seen.add(id(tensor))
    return kept


def find(name: str | Path) -> Path:
    """The folder of a model, given a bundled name, a folder, or the id of a model on the hub, which is downloaded."""
    # os.path answers False for an impossible name, where Path raises an error
    if os.path.basename(name) == str(name) and os.path.isfile(BUNDLED / name / "lamb.json"):
        return BUNDLED / name
    folder = Path(name)
    if os.path.isdir(folder):
        if not (folder / "lamb.json").exists():
            raise CheckpointError(
                f"{name}: holds no lamb.json, so it is not a lamb model; give the folder of a trained one"
            )
        return folder
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)) and not os.path.exists(folder):
        return _download(str(name))
    names = ", ".join(bundled()) or "none"
    raise CheckpointError(f"{name}: no such model; bundled: {names}; else give a folder, or a hub id like user/model")


def bundled() -> list[str]:
    """The names of the bundled models."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/lamb.json"))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client passes on whatever its HTTP library raises
        raise CheckpointError(
            f"{name}: no such folder, and the Hugging Face hub does not give it ({reason(error)}); "
            "check the name and the network"
        ) from error
    if not (folder / "lamb.json").exists():
        raise CheckpointError(f"{name}: this hub model holds no lamb.json, so it is not a lamb model")
    return folder


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of `lamb.json` after checks of its format and version; "config" is a LambConfig."""
    path = folder / "lamb.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy or train the model again") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not written by lamb; give the folder of a lamb model")
    if facts.get("version") != VERSION:
        older = isinstance(facts.get("version"), int) and facts["version"] < VERSION
        remedy = "train it again, or use the lamb that wrote it" if older else "install a newer lamb"
        raise CheckpointError(f"{path}: format version {facts.get('version')}, this lamb reads {VERSION}; {remedy}")
    missing = {"standalone", "card", "config"} - facts.keys()
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(sorted(missing))}; copy or train the model again")
    try:
        return {**facts, "config": from_dict(LambConfig, facts["config"])}
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; was it written by a newer lamb?") from None


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn any failure to read a model's `file` within the block into a CheckpointError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({reason(error)}); copy or train the model again") from error


def load(name: str | Path, device: str, extend: Callable[["LambModel"], "LambModel"]) -> "LambModel":
    """The model `name` (see `find`) on `device`, in evaluation mode. Raises CheckpointError for anything that is wrong.

    `extend` adds the parts that are not in the paper before the weights are read; see `lamb.extensions.load`.
    """
    import torch
    from safetensors.torch import load_file

    from .encoders import build_encoder
    from .lamb import LambModel
    from .language_model import LanguageModel, dtype

    folder = find(name)
    facts = read_facts(folder)
    config, file = facts["config"], folder / "model.safetensors"
    stored = [part for part in BASES if getattr(config, part).source is None]
    with _reading(file):
        weights = load_file(file)
    if "llm" in stored:
        with _reading(folder / "llm"):
            llm = LanguageModel.from_folder(folder / "llm", config.llm)
        for parameter in llm.parameters():  # llm.to() would also round the rotary frequencies
            parameter.data = parameter.data.to(dtype(config.llm.dtype, device))
    try:
        if "llm" not in stored:
            llm = LanguageModel.from_pretrained(config.llm, device)
            _require_same_llm(folder, config.llm.source, facts.get("llm"), llm.identity())
        model = extend(LambModel(config, build_encoder(config.encoder), llm))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{name}: {error}") from error
    _fill(model, weights, stored, file)
    model.to(torch.device(device))
    return model.eval()


def _require_same_llm(folder: Path, source: str | None, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Raise CheckpointError if the LLM at `source` is another one than the model in `folder` was trained with."""
    if before is None or before == now:  # a model that was saved before this was written down
        return
    was, found = (f"{o['kind']}, {o['vocabulary']} tokens, width {o['width']}" for o in (before, now))
    found = "other embeddings" if was == found else found
    raise CheckpointError(
        f"{folder}: was trained with another LLM ({was}) than the one at {source} ({found}); "
        "put the right one there, or train the model again"
    )


def _fill(model: "LambModel", weights: dict[str, "Tensor"], stored: Collection[str], file: Path) -> None:
    expected = tensors(model, stored)
    for what, names in (("lacks", expected.keys() - weights.keys()), ("has unknown", weights.keys() - expected.keys())):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise CheckpointError(f"{file}: {what} tensors: {shown}; lamb.json and the weights do not belong together")
    for name, tensor in expected.items():
        if tensor.shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
            raise CheckpointError(
                f"{file}: {name} has shape {shapes}; lamb.json and the weights do not belong together"
            )
        tensor.copy_(weights[name])  # in place, so that tied tensors follow and the dtype stays


def describe(name: str | Path) -> dict[str, Any]:
    """The parts, size, training and licence of a model, for `lamb info`. The weights are not loaded."""
    from safetensors import safe_open

    folder = find(name)
    facts = read_facts(folder)
    config = to_dict(facts["config"])
    counts: dict[str, int] = {}
    path = folder / "model.safetensors"
    with _reading(path), safe_open(path, framework="numpy") as file:
        for key in file.keys():  # noqa: SIM118  safe_open is not a dict
            if key.rpartition(".")[2] not in STATISTICS:
                part = key.partition(".")[0]
                counts[part] = counts.get(part, 0) + math.prod(file.get_slice(key).get_shape())
    kinds = {
        "encoder": f"{config['encoder']['name']} {config['encoder']['source'] or ''}".strip(),
        "adapter": config["adapter"]["kind"],
        "aligner": "Cauchy-Schwarz divergence + InfoNCE (training only)",
        "guide": f"{config['guide']['distance']}, {config['guide']['reduce']}",
        "llm": _llm_kind(folder, config["llm"]),
    }
    if switched_on := [name for name, own in config["extensions"].items() if own != EXTENSIONS[name]]:
        kinds["extensions"] = ", ".join(switched_on)
    trained = {"encoder": config["encoder"]["train"], "llm": config["llm"]["train"]}
    used = kinds.keys() - {part for part in ("aligner", "guide") if not config[part]["enabled"]}
    return {
        "name": str(name),
        "folder": str(folder),
        "format_version": facts["version"],
        "standalone": facts["standalone"],
        "size_bytes": sum(path.stat().st_size for pattern in FILES for path in folder.glob(pattern)),
        **facts["card"],
        "parts": [
            {"part": part, "kind": kind, "parameters": counts.get(part, 0), "trained": trained.get(part, "full")}
            for part, kind in kinds.items()
            if part in used
        ],
        "config": config,
    }


def _llm_kind(folder: Path, llm: dict[str, Any]) -> str:
    if llm["source"]:
        return str(llm["source"])
    path = folder / "llm" / "config.json"
    with _reading(path):
        return str(json.loads(path.read_text(encoding="utf-8")).get("model_type", "unknown"))


def push_to_hub(name: str | Path, repo: str, *, private: bool = True) -> str:
    """Upload the model `name` to the Hugging Face hub as `repo` (user/model) and return its address.

    The access token comes from `hf auth login` or from the environment variable HF_TOKEN. Raises CheckpointError.
    """
    from huggingface_hub import HfApi

    folder = find(name)
    read_facts(folder)
    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(FILES), commit_message="Upload a lamb model"
        )
    except Exception as error:  # see _download
        raise CheckpointError(
            f"{repo}: the upload failed ({reason(error)}); check the name, the token and the network"
        ) from error
    return str(address)
