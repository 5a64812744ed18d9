"""Models on disk: a folder of `lamb.json` (format, version, configuration, facts) and `model.safetensors`.

Two kinds: by reference, holding only what was trained (adapter, aligner, guide, LoRA, or whole parts that learnt in
full) while encoder and LLM come from the sources that the configuration names; and standalone, holding everything, with
the LLM's configuration and tokenizer in `llm/`. Loading is strict: a missing or an unexpected tensor is an error.
"""

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ExtensionsConfig, LambConfig, from_dict, to_dict
from ..errors import LambError, reason

if TYPE_CHECKING:  # torch takes seconds to import, and `describe` does without
    from torch import Tensor

    from .lamb import LambModel

FORMAT, VERSION = "lamb", 2
EXTENSIONS = to_dict(ExtensionsConfig())  # all off
BUNDLED = Path(__file__).parents[1] / "bundled"
# all that is ever downloaded
FILES = ("lamb.json", "model.safetensors", "llm/*.json", "onnx.json", "*.onnx", "README.md", "ATTRIBUTION.csv")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's tensors that are no parameters


class CheckpointError(LambError, ValueError):
    """A model that cannot be loaded: its name, what is wrong and the remedy."""


def save(
    model: "LambModel",
    folder: str | Path,
    *,
    standalone: bool,
    card: Mapping[str, str],
    half: bool = False,
    decode: Mapping[str, Any] | None = None,
    write: bool = True,
) -> Path:
    """Write `model` into `folder`; a model that lies there is replaced once the new one is written in full.

    Args:
        standalone: with encoder and LLM inside; else they stay where the configuration says (`source`).
        card: facts for people, such as trained_on and licence.
        half: store floats as fp16 (they are computed with in float32 on a CPU all the same).
        decode: decoding options that differ from the model's own configuration.
        write: False in the processes that only give their part of a sharded model to the one that writes it.
    """
    import torch
    from safetensors.torch import save_file
    from torch.distributed.tensor import DTensor

    config = model.config
    if standalone:
        if model.encoder.options is None:
            raise CheckpointError(f"{folder}: an encoder of kind {config.encoder.name} can only be saved by reference")
        encoder = replace(config.encoder, source=None, options=model.encoder.options)
        config = replace(config, encoder=encoder, llm=replace(config.llm, source=None))
    elif None in (config.encoder.source, config.llm.source):
        raise CheckpointError(f"{folder}: encoder and LLM have no source to refer to; save a standalone checkpoint")
    for part, base in (("encoder", model.encoder), ("llm", model.llm)):
        if getattr(config, part).train == "lora" and not any(p.requires_grad for p in base.parameters()):
            raise CheckpointError(f"{folder}: the {part}'s LoRA is merged or frozen; save the model as it was trained")
    if decode:
        config = replace(config, decode=replace(config.decode, **decode))
    weights = {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).cpu().contiguous()  # of a sharded LLM, the whole
        for name, t in tensors(model, standalone).items()
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
        "standalone": standalone,
        "card": dict(card),
        "config": to_dict(config),
    }
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as scratch:
        new = Path(scratch)
        (new / "lamb.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if standalone:
            model.llm.model.config.save_pretrained(new / "llm")
            model.llm.tokenizer.save_pretrained(new / "llm")
        save_file(weights, new / "model.safetensors")
        shutil.copymode(new / "lamb.json", new / "model.safetensors")  # safetensors makes it private
        for name in ("llm/**/*", "model.safetensors", "lamb.json"):
            for file in filter(Path.is_file, new.glob(name)):
                target = folder / file.relative_to(new)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    return folder


def tensors(model: "LambModel", standalone: bool) -> dict[str, "Tensor"]:
    """The tensors of `model` that a checkpoint holds, by name; of tied ones the first."""
    bases = {"encoder": model.config.encoder.train, "llm": model.config.llm.train}
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():  # tied tensors are one object
        part = name.partition(".")[0]
        # a part that learnt in full keeps its buffers too: BatchNorm's statistics moved with it
        own = standalone or part not in bases or tensor.requires_grad or bases[part] == "full"
        if own and id(tensor) not in seen:
            kept[name] = tensor.detach()
            seen.add(id(tensor))
    return kept


def find(name: str | Path) -> Path:
    """The folder of a model: a bundled name, a folder, or a hub id, which is downloaded."""
    # os.path says False to an impossible name, where Path raises
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
    names = ", ".join(sorted(path.name for path in BUNDLED.glob("*") if (path / "lamb.json").exists()))
    raise CheckpointError(
        f"{name}: no such model; bundled: {names or 'none'}; else give a folder, or a hub id like user/model"
    )


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
    """`lamb.json`, checked: format and version are ours; "config" is a LambConfig."""
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
    """Around the reading of a model's `file`: what cannot be read is a CheckpointError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({reason(error)}); copy or train the model again") from error


def load(name: str | Path, device: str, extend: Callable[["LambModel"], "LambModel"]) -> "LambModel":
    """The model `name` (see `find`) on `device`, ready for use. CheckpointError for anything that does not fit.

    `extend` adds the parts that the paper does not have before the weights are read: see `lamb.extensions.load`.
    """
    import torch
    from safetensors.torch import load_file

    from .encoders import build_encoder
    from .lamb import LambModel
    from .language_model import LanguageModel, dtype

    folder = find(name)
    facts = read_facts(folder)
    config, standalone, file = facts["config"], facts["standalone"], folder / "model.safetensors"
    with _reading(file):
        weights = load_file(file)
    if standalone:
        with _reading(folder / "llm"):
            llm = LanguageModel.from_folder(folder / "llm", config.llm)
        for parameter in llm.parameters():  # not llm.to(), which would round the rotary frequencies too
            parameter.data = parameter.data.to(dtype(config.llm.dtype, device))
    try:
        if not standalone:
            llm = LanguageModel.from_pretrained(config.llm, device)
        model = extend(LambModel(config, build_encoder(config.encoder), llm))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{name}: {error}") from error
    _fill(model, weights, standalone, file)
    model.to(torch.device(device))
    return model.eval()


def _fill(model: "LambModel", weights: dict[str, "Tensor"], standalone: bool, file: Path) -> None:
    expected = tensors(model, standalone)
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
        tensor.copy_(weights[name])  # the model's own memory, so tied tensors follow; its dtype stays


def describe(name: str | Path) -> dict[str, Any]:
    """What a model is made of, its size, training and licence, for `lamb info`; no weights are loaded."""
    from safetensors import safe_open

    folder = find(name)
    facts = read_facts(folder)
    config = to_dict(facts["config"])
    counts: dict[str, int] = {}
    path = folder / "model.safetensors"
    with _reading(path), safe_open(path, framework="numpy") as file:
        for key in file.keys():  # noqa: SIM118  safe_open is no dict
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
    """Upload the model `name` to the Hugging Face hub as `repo` (user/model), private unless told; returns its address.

    The token is the one that `hf auth login` or the environment variable HF_TOKEN gives.
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
