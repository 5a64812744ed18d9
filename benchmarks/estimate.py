"""How near `lamb train --estimate` comes to the steps that a recipe really takes, on this machine.

    python benchmarks/estimate.py recipes/small/lamb.yaml threads=1 [KEY=VALUE ...]

Prints the estimated seconds of a step, and the median of those of real steps on the recipe's own clips, under captions
as long as those of the estimate, 12 without the first two. Give `threads` so that both have the same number, and a
quiet machine.
"""

import argparse
import statistics
import time

import torch

from lamb.config import TrainConfig, read_recipe
from lamb.data.loader import WHOLE
from lamb.training.device import precision_of
from lamb.training.estimate import CAPTION, estimate
from lamb.training.lamb_stage import LambStage

STEPS = 12


def step_seconds(config: TrainConfig) -> list[float]:
    """Seconds of STEPS steps of the recipe, with its scenes or clips already made."""
    torch.manual_seed(config.seed)
    stage = LambStage(config)
    stage.module.train()
    batches = [stage.batch(k, WHOLE) for k in range(STEPS)]
    for batch in batches:
        batch["captions"] = [CAPTION] * len(batch["captions"])
    optimiser = torch.optim.AdamW(stage.param_groups())
    seconds = []
    for batch in batches:
        began = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(stage.module.device.type, torch.bfloat16, enabled=precision_of(config) == "bf16"):
            loss = stage.loss(stage.module, batch)["loss"]
        loss.backward()
        optimiser.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    config = read_recipe(args.recipe, args.settings)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    found = estimate(config)
    real = statistics.median(step_seconds(config)[2:])
    print(f"estimated {found.whole.seconds:.2f} s, real {real:.2f} s: {found.whole.seconds / real - 1:+.0%}")


if __name__ == "__main__":
    main()
