"""`lamb train`: one stage of training, from a recipe to a folder (paper section 7)."""

from collections.abc import Callable
from pathlib import Path

import torch

from ..config import ConfigError, TrainConfig, read_recipe
from .device import LESS_MEMORY, TrainingError, is_first_process
from .distill import DistillStage
from .lamb_stage import LambStage
from .language_model_stage import LanguageModelStage
from .loop import fit
from .stage import Stage
from .state import require_same_recipe

STAGES: dict[str, Callable[[TrainConfig], Stage]] = {
    "distill": DistillStage,
    "language_model": LanguageModelStage,
    "lamb": LambStage,
}


def train(recipe: str | Path, overrides: list[str] | tuple[str, ...] = (), resume: bool = False) -> Path:
    """Run the stage that `recipe` describes and return the folder of the result.

    Args:
        overrides: settings `key=value` in place of the recipe's.
        resume: continue a run that the folder holds.

    Raises ConfigError for a recipe that cannot be used, and for a folder that holds a run already unless `resume`;
    TrainingError for training that cannot continue.
    """
    return run_stage(read_recipe(recipe, overrides), resume)


def run_stage(config: TrainConfig, resume: bool) -> Path:
    """Run the stage of a recipe that has been read; see `train`."""
    if (Path(config.out) / "recipe.json").exists() and not resume:
        raise ConfigError(f"{config.out}: holds a run already; continue it with --resume, or choose another out=FOLDER")
    require_same_recipe(config)
    if config.optim.shard and config.stage != "lamb":
        raise ConfigError(f"optim.shard: stage {config.stage} trains no large LLM; leave it out")
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        stage = STAGES[config.stage](config)
        fit(config, stage)
        stage.save(write=is_first_process())
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(".")[0]
        raise TrainingError(f"the GPU's memory is full ({reason}): use {LESS_MEMORY}") from None
    return Path(config.out)
