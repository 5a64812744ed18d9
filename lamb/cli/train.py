"""`lamb train` and `lamb ablate`: training from recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..config import read_recipe
from .errors import needing
from .options import Overrides, Recipe, flag, option


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[bool, flag("--resume", help="Continue from the last saved state.")] = False,
    estimate: Annotated[
        bool, flag("--estimate", help="Do not train: print the memory and the time of a step.")
    ] = False,
) -> None:
    """Train a model from a recipe.

    Prints the folder of the result, or with --estimate what a step takes.

    Example: lamb train recipes/tiny/3-lamb.yaml optim.steps=2000
    """
    with needing("train"):
        from ..training.loop import is_first_process
        from ..training.train import train

    if estimate:
        with needing("train"):
            from ..training import estimate as estimating
        config = read_recipe(recipe, overrides or [])
        print(estimating.text(estimating.estimate(config), config))
        return
    out = train(recipe, overrides or [], resume)
    if is_first_process():
        print(out)


def ablate(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[bool, flag("--resume", help="Run only what an earlier call did not finish.")] = False,
    document: Annotated[Path | None, option("FILE", "Also write the tables into this Markdown file.")] = None,
) -> None:
    """Compare variants of a recipe over several seeds.

    Trains and scores each variant and prints the tables.
    See recipes/ablation.yaml for an example.
    """
    with needing("train"):
        from ..training.ablate import ablate

    print(ablate(recipe, overrides or [], resume, document), end="")
