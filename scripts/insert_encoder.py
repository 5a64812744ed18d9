"""Write a copy of a model that has another encoder of the same architecture, to be trained further (`init`).

python scripts/insert_encoder.py tiny runs/tiny/heads runs/tiny/start
"""

import sys
from pathlib import Path

from lamb.extensions import load
from lamb.model.checkpoint import BASES, find, read_facts, save
from lamb.model.encoders.efficientat import EfficientAT


def main() -> None:
    name, source, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    model, encoder = load(name), EfficientAT.from_pretrained(source)
    if encoder.options != model.encoder.options:
        sys.exit(f"{source}: is another architecture than the encoder of {name}, or knows other labels")
    if folder.exists():
        sys.exit(f"{folder}: exists already; give another folder")
    model.encoder.load_state_dict(encoder.state_dict())
    stored = {part for part in BASES if getattr(model.config, part).source is None}
    save(model, folder, stored=stored, half=True, card=read_facts(find(name))["card"])


if __name__ == "__main__":
    main()
