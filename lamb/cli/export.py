"""`lamb export`: a model becomes graphs for ONNX Runtime, to run without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..config import DEFAULT_MODEL
from .errors import loading, needing, say
from .options import OUTPUT, ModelName, flag, option


def export(
    model: ModelName = DEFAULT_MODEL,
    to: Annotated[
        Path | None,
        option("DIR", "The folder of a new model, LoRA merged.", OUTPUT, default="the graphs are added to the model"),
    ] = None,
    int8: Annotated[
        bool, flag("--int8", panel=OUTPUT, help="Store the language model's weights in eight bits; needs --to.")
    ] = False,
    sounds: Annotated[
        list[Path] | None,
        option("FILE", "A recording that the graphs are checked on, besides noise. May be repeated."),
    ] = None,
) -> None:
    """Export a model for ONNX Runtime: captions without PyTorch.

    Encoders of the kinds efficientat and ced, and language models of LLaMA's kind can be
    exported. The graphs must say what PyTorch says of the sounds, else it is an error and nothing
    is written.

    \b
    Examples:
      lamb export runs/my-model --to my-model-light
      lamb caption dog.wav --model my-model-light
    """
    if int8 and to is None:
        raise typer.BadParameter("--int8 needs a folder of its own: --to DIR.")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # PyTorch's exporter thinks aloud
    with needing("train"):
        from ..export.export import export as write

    with loading():
        folder = write(model, to, int8=int8, sounds=sounds or [])
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say("exported", f"{folder} ({size / 1e6:.1f} MB)")
