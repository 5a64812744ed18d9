"""lamb.errors: what a user sees of an error, and which errors are a user's."""

import importlib
import pickle
import pkgutil

import pytest

import lamb
from lamb.errors import LambError, OptionError, reason


@pytest.mark.parametrize("kind", [LambError, OptionError])
def test_problem_and_remedy_are_one_line(kind):
    error = kind("beams is 0", "give at least 1")
    assert str(error) == "beams is 0; give at least 1"
    assert str(kind("beams is 0")) == "beams is 0"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.problem, copy.remedy) == (kind, "beams is 0", "give at least 1")


def test_an_operating_system_error_keeps_no_number():
    class Failed(LambError, OSError):
        pass

    error = Failed("the disk is full", "make room")
    assert (str(error), error.errno, error.strerror) == ("the disk is full; make room", None, None)


def test_reason_is_one_line_of_another_librarys_error():
    assert reason(ValueError("\nbad magic\nand more")) == "bad magic"
    assert reason(MemoryError()) == "MemoryError"
    assert len(reason(ValueError("x" * 1000))) == 200


def test_every_error_of_ours_is_a_lamb_error():
    """Each class whose name ends in Error, in every module that can be imported here."""
    found = set()
    for module in pkgutil.walk_packages(lamb.__path__, "lamb."):
        try:
            names = vars(importlib.import_module(module.name))
        except ImportError:  # an extra that is not installed
            continue
        found |= {value for value in names.values() if isinstance(value, type) and value.__module__ == module.name}
    errors = {kind for kind in found if issubclass(kind, Exception) and kind.__name__.endswith("Error")}
    assert len(errors) > 8
    assert {kind for kind in errors if not issubclass(kind, LambError)} == set()
