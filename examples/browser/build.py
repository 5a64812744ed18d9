"""Put a page together that captions sounds in the browser: an exported model, ONNX Runtime for the web, and this page.

    python examples/browser/build.py --to site            the bundled model
    python examples/browser/build.py MODEL --to site      a folder that `lamb export MODEL --to DIR` made
    python -m http.server --directory site --bind 127.0.0.1 8080

ONNX Runtime comes from npm, one pinned version whose checksum is checked; everything else is here. The page needs no
server of ours: any that hands out files will do, and nothing that is heard leaves the browser.
"""

import argparse
import base64
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from urllib.request import urlopen

from lamb.data.vocabulary import PARENTS, PATTERNS, PHRASES, SAME, VOCABULARY, akin, ancestors
from lamb.inference.weighing import below
from lamb.model import checkpoint

HERE = Path(__file__).parent
RUNTIME = "https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # sha512
FROM_RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
GRAPHS = ("encoder.onnx", "adapter.onnx", "labels.onnx", "guide.onnx", "language_model.onnx")  # where there are such


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--to", type=Path, required=True, help="the folder of the page")
    given = parser.parse_args()
    build(checkpoint.find(given.model), given.to)
    print(given.to)


def build(model: Path, site: Path) -> None:
    """The page in the folder `site`, with the exported model in the folder `model`."""
    if not (model / "onnx.json").exists():
        raise SystemExit(f"{model}: holds no graphs; make them with: lamb export {model} --to DIR")
    (site / "model").mkdir(parents=True, exist_ok=True)
    for file in ("index.html", *(path.name for path in HERE.glob("*.js"))):
        shutil.copyfile(HERE / file, site / file)
    for file in (*GRAPHS, "model.safetensors"):
        if (model / file).exists():
            shutil.copyfile(model / file, site / "model" / file)
    (site / "model" / "model.json").write_text(json.dumps(facts(model)), encoding="utf-8")
    runtime(site / "ort")


def facts(model: Path) -> dict[str, object]:
    """What the page must know besides graphs and weights: decoding, tokenizer and vocabulary."""
    config = checkpoint.read_facts(model)["config"]
    exported = json.loads((model / "onnx.json").read_text(encoding="utf-8"))
    llm = json.loads((model / "llm" / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((model / "llm" / "tokenizer.json").read_text(encoding="utf-8"))
    if tokenizer["model"]["type"] != "BPE" or (tokenizer["pre_tokenizer"] or {}).get("type") != "ByteLevel":
        raise SystemExit(f"{model}: the page knows byte-level BPE only, as the bundled model has it")
    decode, weigh = config.decode, config.decode.weigh
    return {
        **{key: exported[key] for key in ("sample_rate", "labels", "prompt", "eos", "embedding", "residual")},
        "groups": llm["num_key_value_heads"],
        "head_dim": llm["head_dim"],
        "graphs": [name for name in GRAPHS if (model / name).exists()],
        "decode": {
            key: getattr(decode, key)
            for key in ("beams", "max_new_tokens", "no_repeat_ngram", "length_penalty", "guide", "window")
        },
        "weigh": {
            "enabled": weigh.enabled,
            **{key: getattr(weigh, key) for key in ("sound", "caption", "doubt", "upper", "wording", "offered")},
        },
        "confidence": decode.confidence,
        "tokens": tokenizer["model"]["vocab"],
        "merges": [pair if isinstance(pair, list) else pair.split(" ") for pair in tokenizer["model"]["merges"]],
        "vocabulary": {
            "patterns": [[*pattern[:2], sorted(pattern[2])] for own in PATTERNS.values() for pattern in own],
            "akin": {label: sorted(akin(label)) for label in VOCABULARY},
            "ancestors": {label: sorted(ancestors(label)) for label in VOCABULARY},
            "below": {label: sorted(below(frozenset([label]))) for label in VOCABULARY},
            "same": SAME,
            "parents": {parent: PHRASES[parent][0].clause for parent in sorted(PARENTS)},
        },
    }


def runtime(folder: Path) -> None:
    """ONNX Runtime for the web, downloaded once."""
    if all((folder / name).exists() for name in FROM_RUNTIME):
        return
    with urlopen(RUNTIME, timeout=120) as answer:
        content = answer.read()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != INTEGRITY:
        raise SystemExit(f"{RUNTIME}: is not what it was when this page was made; nothing of it is used")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for name in FROM_RUNTIME:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())


if __name__ == "__main__":
    main()
