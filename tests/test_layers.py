"""The house: a room uses only rooms before it in the list, and what must be quick imports nothing heavy."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamb

PACKAGE = Path(__file__).parents[1] / "lamb"

ROOMS = [  # the one place where the order is stated: a room may use those before it
    "errors",
    "config",
    "audio",
    "model",
    "extensions",
    "data",
    "inference",
    "export",
    "evaluation",
    "training",
    "library",
    "live",
    "serving",
    "bulk",
    "cli",
    "__main__",
]
LIGHT = {  # what these files may import when they are imported, besides the standard library
    "": set(),
    "errors": set(),
    "config": set(),
    "extensions": set(),
    "extensions.one_mention": {"numpy"},
    "extensions.reranking": {"numpy"},
    "inference.captions": set(),
    "inference.engine": {"numpy"},
    "inference.generation": set(),
    "inference.onnx_runtime": {"numpy"},
    "inference.search": {"numpy"},
    "inference.weighing": {"numpy"},
    "inference.confidence": {"numpy"},
    "inference.recording": {"numpy"},
    "inference.timeline": {"numpy"},
    "inference.parts": {"numpy"},
    "inference.picture": {"numpy"},
    "inference.explain": {"numpy"},
    "serving.page_result": {"numpy"},
    "inference.changes": {"numpy"},
    "evaluation.metrics": {"numpy"},
    "evaluation.tokenizer": set(),
    "model.checkpoint": set(),  # `lamb info` does without torch
    "model.safetensors_index": {"numpy"},
    "audio.files": set(),
    "audio.headers": set(),
    "audio.reader": {"numpy"},
    "audio.sandbox": {"numpy"},  # a decoding process starts at once, and has no model to lose
    **{f"cli.{module}": {"typer"} for module in ("app", "options", "caption", "library", "listen", "serve")},
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


def room(module: str) -> str:
    return module.split(".")[0]


def rooms_used(module: str) -> set[str]:
    """The other rooms that a module imports from, inside functions and for types too."""
    names = (
        name.removeprefix("lamb.") for name in imports(module, ast.walk(parsed(module))) if name.startswith("lamb.")
    )
    return {room(name) for name in names} - {room(module)}


def test_every_file_is_in_a_room():
    assert {room(module) for module in FILES} == {"", *ROOMS}


@pytest.mark.parametrize("module", sorted(set(FILES) - {""}))
def test_a_room_uses_only_rooms_before_it(module):
    assert rooms_used(module) <= set(ROOMS[: ROOMS.index(room(module))])


def test_no_module_imports_itself_in_a_circle():
    uses = {m: {n.removeprefix("lamb.") for n in imports(m, at_import(parsed(m)))} & set(FILES) for m in FILES if m}
    done: set[str] = set()
    while ready := {m for m in uses.keys() - done if uses[m] - {m} <= done}:
        done |= ready
    assert set(uses) - done == set()


def test_the_reader_of_imports_sees_all_kinds():
    found = list(imports("data.loader", ast.walk(parsed("data.loader"))))
    assert {"lamb.audio.reader", "lamb.data.manifest", "torch.utils.data", "numpy"} <= set(found)
    assert "lamb.training.train" in set(imports("cli.train", ast.walk(parsed("cli.train")))), "inside functions too"
    assert "lamb.training.train" not in set(imports("cli.train", at_import(parsed("cli.train"))))


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_light_files_import_nothing_heavy(module):
    tops = {name.split(".")[0] for name in imports(module, at_import(parsed(module)))}
    assert tops - sys.stdlib_module_names - {"lamb"} <= LIGHT[module]


def loaded_with(module: str) -> set[str]:
    """All modules, of lamb and others, that importing `module` imports."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        at = waiting.pop()
        new = set(imports(at, at_import(parsed(at)))) - found
        found |= new
        # importing a.b runs a/__init__.py as well
        mine = {".".join(name.split(".")[1:k]) for name in new if name.startswith("lamb.") for k in range(2, 9)}
        waiting += sorted(mine & set(FILES))
    return found


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_light_files_load_no_pytorch_through_others(module):
    assert not {name.split(".")[0] for name in loaded_with(module)} & {"torch", "transformers", "peft", "accelerate"}
