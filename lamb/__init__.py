"""lamb: audio captioning, which describes recordings in words. Importing it does nothing until a name is used."""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["AudioError", "Caption", "Captioner", "Library", "Segment", "__version__"]

if TYPE_CHECKING:
    from .audio.reader import AudioError
    from .inference.captioner import Captioner
    from .inference.captions import Caption, Segment
    from .library.library import Library

_WHERE = {
    "AudioError": "audio.reader",
    "Captioner": "inference.captioner",
    "Caption": "inference.captions",
    "Segment": "inference.captions",
    "Library": "library.library",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lamb' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
