"""Write the encoder of a model into a folder of its own, which a recipe can name as `model.encoder.source`.

python scripts/extract_encoder.py tiny runs/tiny/encoder
"""

import sys
from pathlib import Path

from lamb.extensions import load
from lamb.model.encoders.efficientat import EfficientAT


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    encoder = load(name).encoder
    if not isinstance(encoder, EfficientAT):
        sys.exit(f"{name}: its encoder can only be used from its own source")
    if folder.exists():
        sys.exit(f"{folder}: exists already; give another folder")
    folder.mkdir(parents=True)
    encoder.save(folder)


if __name__ == "__main__":
    main()
