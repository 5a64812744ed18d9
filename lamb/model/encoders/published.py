"""Published checkpoints: where their file is, and the tensors in it, never more than tensors."""

import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn


def locate(source: str | Path, name: str, example: str) -> Path:
    """The checkpoint file that `source` stands for, downloaded if need be.

    source: a file; a folder with model.safetensors; the hub id of a repository with one, OWNER/NAME; a file in such a
    repository, OWNER/NAME/FILE; or an https:// address, whose file is kept where PyTorch keeps downloaded weights.
    `name` of the encoder and an `example` of a source are for messages.
    FileNotFoundError: no such file. ConnectionError: hub or address do not have it or cannot be reached.
    """
    if str(source).startswith("https://"):
        return _download(str(source))
    path = Path(source)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.is_file():
        return path
    parts = str(source).split("/")
    of_a_file = path.suffix in (".pt", ".safetensors")
    if isinstance(source, Path) or path.parent.is_dir() or len(parts) != 2 + of_a_file or not all(parts):
        raise FileNotFoundError(
            f"no {name} checkpoint at {path}; give a folder with model.safetensors, a .safetensors or .pt file, "
            f"or a hub id such as {example}"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2] if of_a_file else "model.safetensors"))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        raise ConnectionError(
            f"{source} could not be fetched from the Hugging Face hub ({type(error).__name__}); "
            "check the id and the network, or give a local folder with its model.safetensors"
        ) from error


def _download(address: str) -> Path:
    """The file at an https:// address; fetched once."""
    from urllib.parse import urlsplit

    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(address).path).name
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, str(file), progress=False)
    except OSError as error:
        raise ConnectionError(
            f"{address} could not be fetched ({type(error).__name__}); check the address and the network, or download "
            "the file otherwise and give its path"
        ) from error
    return file


def read(file: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pt file; a pickle is never allowed to run code. ValueError for any other."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} was not loaded: it holds more than tensors, or is no checkpoint, and could run code. "
            "Give a .safetensors file, or the original .pt"
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as a checkpoint ({error}); is it complete?") from error
    state = state.get("model", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} is not a {name} checkpoint: it holds no dictionary of tensors")
    return state


def load(model: nn.Module, state: dict[str, Tensor], file: Path, name: str, family: str) -> None:
    """Put `state` into `model`, all of it and nothing else; ValueError names the keys that do not fit."""
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # tensors whose shapes contradict each other
        raise ValueError(f"{file} is not a {name} checkpoint: {error}") from None
    if missing or unexpected:
        raise ValueError(
            f"{file} does not fit {name}; missing keys: {some(missing)}; unexpected: {some(unexpected)}. "
            f"Give an unchanged checkpoint of the {family} family"
        )


def some(keys: Iterable[str]) -> str:
    """The first keys of many, for a message."""
    keys = sorted(keys)
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "") if keys else "none"
