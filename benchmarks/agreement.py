"""Whether both engines say the same: captions and scores of labelled recordings with ONNX Runtime and with PyTorch.

    python benchmarks/agreement.py [FOLDER ...] [--split NAME] [--model NAME]

Prints how many captions are equal, the largest difference of a score where they are, and the others one by one.
"""

import argparse
from pathlib import Path

from lamb import Captioner
from lamb.data import sources

SHARED = Path(__file__).parents[2] / "shared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", default=[str(SHARED / "sounds"), str(SHARED / "sounds-more")])
    parser.add_argument("--split", default="development")
    parser.add_argument("--model", default="tiny")
    args = parser.parse_args()
    clips = [clip for folder in args.folders for clip in sources.clips(folder, args.split)]
    light, torch = ([*Captioner.load(args.model, engine=engine).stream(clips)] for engine in ("onnx", "torch"))
    pairs = list(zip(light, torch, strict=True))
    equal = [(one, other) for one, other in pairs if one.text == other.text]
    apart = max((abs((one.score or 0) - (other.score or 0)) for one, other in equal), default=0.0)
    print(f"{len(equal)} of {len(pairs)} captions are equal, their scores within {apart:.1e}")
    for one, other in pairs:
        if one.text != other.text:
            print(f"{one.file}: {one.text} ({one.score:.4f}) / {other.text} ({other.score:.4f})")


if __name__ == "__main__":
    main()
