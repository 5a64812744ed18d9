"""What a step of the paper's recipe takes with LLaMA-2 7B and CED-base, by `lamb train --estimate`; no download.

    python benchmarks/paper_scale.py [KEY=VALUE ...]

The networks have the paper's sizes and random weights, of the LLM a few blocks. The tokenizer is made here, with about
a token for each word, which LLaMA's also has. Settings are those of recipes/paper/pretrain.yaml.
"""

import sys
import tempfile
from pathlib import Path

from transformers import LlamaConfig

from lamb.config import read_recipe
from lamb.training import estimate as estimating
from lamb.training.estimate import CAPTION, estimate, text
from lamb.training.language_model_stage import train_tokenizer

ROOT = Path(__file__).parents[1]
CED_BASE = "{dim: 768, heads: 12}"


def main() -> None:
    estimating.BLOCKS, estimating.TIMES = 2, 1  # as exact for memory and arithmetic; a CPU's seconds are left out
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer([CAPTION, "USER: Please describe the audio. ASSISTANT:"] * 50, 32_000)
        tokenizer.save_pretrained(folder)
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        LlamaConfig(**ends).save_pretrained(folder)  # its defaults are LLaMA-2 7B
        settings = [
            f"model.llm.source={folder}",
            "model.encoder.source=null",
            f"model.encoder.options={CED_BASE}",
            "model.llm.dtype=bfloat16",
            "precision=bfloat16",
            "data.seconds=10",
            *sys.argv[1:],
        ]
        config = read_recipe(ROOT / "recipes" / "paper" / "pretrain.yaml", settings)
        lines = text(estimate(config), config).splitlines()
        print("\n".join(line for line in lines if "this machine" not in line))


if __name__ == "__main__":
    main()
