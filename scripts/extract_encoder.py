"""Write the encoder of a model into a folder of its own, which a recipe can name as `model.encoder.source`.

python scripts/extract_encoder.py tiny runs/tiny/encoder
"""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from lamb.extensions import load


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    encoder = load(name).encoder
    if encoder.options is None:
        sys.exit(f"{name}: its encoder can only be used from its own source")
    if folder.exists():
        sys.exit(f"{folder}: exists already; give another folder")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(encoder.options))
    save_file({key: value.contiguous() for key, value in encoder.state_dict().items()}, folder / "model.safetensors")


if __name__ == "__main__":
    main()
