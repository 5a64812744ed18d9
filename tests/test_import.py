"""`import lamb` does nothing until a name is used."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import lamb

HEAVY = ("torch", "numpy", "transformers", "soundfile", "av", "soxr", "huggingface_hub", "safetensors", "yaml", "typer")
CODE = f"""
import logging, os, sys, threading, warnings
before = dict(os.environ), list(logging.root.handlers), list(warnings.filters)
import lamb
assert "Captioner" in dir(lamb) and "__version__" in dir(lamb), dir(lamb)
assert [name for name in {HEAVY} if name in sys.modules] == []
assert (dict(os.environ), list(logging.root.handlers), list(warnings.filters)) == before
assert threading.active_count() == 1
assert lamb.Caption is __import__("lamb.inference.captions").inference.captions.Caption
assert [name for name in {HEAVY} if name in sys.modules] == []
assert lamb.AudioError.__module__ == "lamb.audio.errors"
assert "torch" not in sys.modules
print("fine")
"""


def test_import_does_nothing():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("fine\n", "")


def test_names_are_found_when_used():
    from lamb.inference.captioner import Captioner

    assert lamb.Captioner is Captioner
    assert set(lamb.__all__) <= set(dir(lamb))
    assert all(getattr(lamb, name) is not None for name in lamb.__all__)


def test_a_name_that_is_not_there():
    with pytest.raises(ImportError, match="nonsense"):
        from lamb import nonsense  # noqa: F401
    with pytest.raises(AttributeError, match="module 'lamb' has no attribute 'nonsense'"):
        lamb.nonsense  # noqa: B018


def test_version_is_that_of_the_package():
    assert lamb.__version__ == version("lamb-aac")
