"""The house: a file imports only from floors below its own, and what must be quick imports nothing heavy."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamb

PACKAGE = Path(__file__).parents[1] / "lamb"

# fmt: off
FLOORS = [
    ["", "config", "audio", "captions", "adapter", "alignment", "token_guide", "encoders.base", "data",
     "data.phrases", "data.download", "data.archives", "metrics", "changes", "augment", "serving"],
    ["encoders.ced", "encoders.conv", "encoders.huggingface", "llm", "sharding", "data.manifest", "data.scenes",
     "reference_metrics", "serving.decoding", "serving.gate", "serving.schema"],
    ["encoders", "labels", "picture", "bulk_listing", "scores", "data.sources", "data.loader", "data.leakage",
     "data.coverage", "data.collections.published"],
    ["model", "probes", "data.render", "data.collections.audiocaps", "data.collections.clotho",
     "data.collections.wavcaps", "data.collections.macs", "data.collections.esc50", "data.collections.urbansound8k",
     "data.collections.folder"],
    ["losses", "decode", "fit", "data.collections"],
    ["checkpoint", "batches"],
    ["timeline"],
    ["captioner"],
    ["predictions", "gap", "serving.batching"],
    ["evaluate"],
    ["train", "report", "serving.service"],
    ["ablate", "server", "bulk_workers"],
    ["bulk", "demo"],
    ["cli"],
    ["__main__"],
]
# fmt: on
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}
LAZY = ""  # lamb/__init__.py looks its names up when they are used, and imports nothing before
LIGHT = {  # what these files may import when they are imported, besides the standard library
    "": set(),
    "config": set(),
    "captions": set(),
    "metrics": {"numpy"},
    "checkpoint": set(),  # `lamb info` does without torch
    "audio": {"numpy"},
    "serving.decoding": {"numpy"},  # a decoding process starts at once, and has no model to lose
    "cli": {"typer"},
    "__main__": set(),
}


def module_of(file: Path) -> str:
    """lamb/data/loader.py -> data.loader; lamb/data/__init__.py -> data."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


FILES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Full names of all modules that `nodes` import: lamb.data.loader, torch.nn ..."""
    package = ["lamb", *module.split(".")] if FILES[module].name == "__init__.py" else ["lamb", *module.split(".")[:-1]]
    package = [part for part in package if part]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # `from . import audio` names a module, `from .audio import load` does not
                name = f"{start}.{alias.name}"
                lazily = f"lamb.{lamb._WHERE[alias.name]}" if start == "lamb" and alias.name in lamb._WHERE else start
                yield name if name.removeprefix("lamb.") in FILES else lazily


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the file is imported: not in a function, not under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import(node)


def parsed(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def test_every_file_has_its_floor():
    assert set(FILES) == set(FLOOR)


@pytest.mark.parametrize("module", sorted(set(FILES) - {LAZY}))
def test_imports_only_from_below(module):
    own = [name for name in imports(module, ast.walk(parsed(module))) if name.split(".")[0] == "lamb"]
    below = {name: FLOOR[name.removeprefix("lamb").removeprefix(".")] for name in own}
    assert {name: floor for name, floor in below.items() if floor >= FLOOR[module]} == {}


def test_the_reader_of_imports_sees_all_kinds():
    found = list(imports("data.loader", ast.walk(parsed("data.loader"))))
    assert {"lamb.audio", "lamb.data.manifest", "torch.utils.data", "numpy"} <= set(found)
    assert "lamb.train" in set(imports("cli", ast.walk(parsed("cli")))), "inside functions too"
    assert "lamb.train" not in set(imports("cli", at_import(parsed("cli"))))


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_light_files_import_nothing_heavy(module):
    tops = {name.split(".")[0] for name in imports(module, at_import(parsed(module)))}
    assert tops - sys.stdlib_module_names - {"lamb"} == LIGHT[module]
