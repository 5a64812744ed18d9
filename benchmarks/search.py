"""How well `lamb search` finds sounds, and how fast.

    python benchmarks/search.py [--model NAME] [--beams K] [--shared FOLDER] [--keep DB]
    python benchmarks/search.py --speed

The first indexes the development recordings of both collections in `shared` and asks for each label (such as "crying
baby"), each distinct phrase of `sounds-more` ("a lion roaring"), and each human caption of `sounds`, whose one right
answer is its own recording. Right for a label or a phrase is every recording of the label. The share of the kinds of
sound (`LibraryConfig.kinds`) was chosen on these recordings.

The second searches 100,000 made-up vectors and captions.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lamb.data import sources
from lamb.inference.captioner import Captioner
from lamb.library.library import Library
from lamb.library.moments import Moment
from lamb.library.query import kinds
from lamb.library.store import File, Store

ROOT = Path(__file__).parents[1]
Scores = Callable[[str], np.ndarray]


def recordings(shared: Path) -> list[dict]:
    """The development recordings: collection, path, label, phrase, captions."""
    return [
        {
            "from": name,
            "path": clip.path,
            "label": clip.labels[0],
            "phrase": clip.description or "",
            "captions": clip.captions,
        }
        for name in ("sounds", "sounds-more")
        for clip in sources.sounds(shared / name)
        if clip.split == "development"
    ]


def asked(items: Sequence[dict]) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Queries by kind, each with what is right (N,)."""
    labels = np.array([item["label"] for item in items])
    phrases = {item["phrase"]: item["label"] for item in items if item["phrase"]}
    own = [(caption, k) for k, item in enumerate(items) for caption in item["captions"]]
    return {
        "labels": [(label.replace("_", " "), labels == label) for label in sorted(set(labels))],
        "phrases": [(phrase, labels == label) for phrase, label in sorted(phrases.items())],
        "captions": [(caption, np.arange(len(items)) == k) for caption, k in own],
    }


def measures(scores: Scores, queries: Sequence[tuple[str, np.ndarray]]) -> list[float]:
    """Recall@1, 5, 10 (a right one is among the first k) and mean average precision."""
    hits, precision = [], []
    for query, right in queries:
        order = np.argsort(-scores(query), kind="stable")
        places = np.flatnonzero(right[order])
        hits.append([places[0] < k for k in (1, 5, 10)])
        precision.append(np.mean((np.arange(len(places)) + 1) / (places + 1)))
    return [*np.mean(hits, 0).tolist(), float(np.mean(precision))]


def ways(library: Library, items: Sequence[dict]) -> dict[str, Scores]:
    """Score functions (N,) of the recordings, by their best segments."""
    place = {item["path"]: k for k, item in enumerate(items)}
    store, count, weight = library.store, len(library.store), library.config.words
    llm, rng = library.captioner.model.llm, np.random.default_rng(0)

    def best(rows: Sequence[dict], score: Callable[[dict], float]) -> np.ndarray:
        found = np.full(len(items), -np.inf)
        for row in rows:
            if (k := place.get(row["path"])) is not None:
                found[k] = max(found[k], score(row))
        return found

    def nearest(vector: np.ndarray) -> np.ndarray:
        return best(store.near(vector, None, count).to_pylist(), lambda row: 1 - row["_distance"])

    def plain(query: str) -> np.ndarray:
        ids, mask = llm.tokenize([query.lower()])
        mean = llm.embed(ids[mask]).detach().float().mean(0).cpu().numpy()
        return nearest(mean / np.linalg.norm(mean))

    def space(query: str) -> np.ndarray:
        return nearest(library.words.vector(query))

    def words(query: str) -> np.ndarray:
        return np.maximum(best(store.worded(query, None, count).to_pylist(), lambda row: row["_score"]), 0)

    def ranked(query: str) -> np.ndarray:
        a, b = space(query), words(query)
        rank = lambda s: np.searchsorted(np.sort(-s), -s) + 1  # equal ones alike
        return 1 / (60 + rank(a)) + np.where(b > 0, 1 / (60 + rank(b)), 0)

    def heads(query: str) -> np.ndarray:
        named = kinds(query, store.labels)
        if not len(named):
            return np.zeros(len(items))
        return best(store.heard(named.max(0), None, count).to_pylist(), lambda row: 1 - row["_distance"])

    def pair(query: str) -> np.ndarray:
        b = words(query)
        return space(query) + weight * b / max(b.max(), 1e-9)

    def hybrid(query: str) -> np.ndarray:
        found = library.found(store, library.words.vector(query), query, None, count)
        return best([vars(match) | {"path": match.file} for match in found], lambda row: row["score"])

    return {
        "chance": lambda query: rng.random(len(items)),
        "aligned space, plain mean": plain,
        "aligned space": space,
        "caption text": words,
        "label heads": heads,
        "space and text, by ranks": ranked,
        "space and text": pair,
        "hybrid (lamb search)": hybrid,
    }


def quality(model: str, shared: Path, folder: Path, beams: int | None) -> None:
    items = recordings(shared)
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"id": i["path"], "path": i["path"]}) + "\n" for i in items))
    library = Library(folder / "index", Captioner.load(model, engine="torch"))
    began = time.monotonic()
    tally = library.index(manifest, beams=beams)
    seconds = time.monotonic() - began
    print(f"{tally.indexed} recordings, {tally.seconds / 60:.1f} min of sound, indexed in {seconds:.0f} s")
    for name in ("sounds", "sounds-more", "both"):
        own = [item for item in items if name in ("both", item["from"])]
        for kind, queries in asked(own).items():
            if not queries:
                continue
            print(f"\n{name}, {len(own)} recordings, {len(queries)} {kind}      R@1    R@5   R@10    mAP")
            for way, scores in ways(library, own).items():
                print(f"  {way:28s}" + "".join(f" {value:6.3f}" for value in measures(scores, queries)), flush=True)


def speed(folder: Path, count: int = 100_000, dim: int = 256) -> None:
    library = Library(folder / "index")
    labels = Captioner.load("tiny").engine.runtime.labels
    store = Store.create(folder / "index", dim, labels, "made-up", "none", library.config)
    rng = np.random.default_rng(0)
    words = ["dog", "rain", "siren", "door", "bell", "man", "cat", "barks", "falls", "wails", "creaks", "rings"]
    for begin in range(0, count, 10_000):
        vectors = rng.standard_normal((10_000, dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        files = [File(f"/sounds/{begin + k}.wav", "", "/sounds", 0, 0, "") for k in range(10_000)]
        said = [" ".join(rng.choice(words, 4)) for _ in files]
        heard = rng.dirichlet(np.full(len(labels), 0.02), 10_000)  # mostly two or three of them
        moments = [[Moment(0, 1, text, 0.5, v, p)] for text, v, p in zip(said, vectors, heard, strict=True)]
        store.add([(file, 1.0, own) for file, own in zip(files, moments, strict=True)])
    store.compact()
    times = []
    for k in range(40):
        vector = rng.standard_normal(dim).astype(np.float32)
        began = time.perf_counter()
        library.found(store, vector / np.linalg.norm(vector), "a dog barks in the rain", None, 20)
        if k >= 10:
            times.append(1000 * (time.perf_counter() - began))
    print(f"{count} segments: median {statistics.median(times):.1f} ms, slowest of {len(times)} {max(times):.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--keep", type=Path, help="keep the index here, and go on with it")
    parser.add_argument("--beams", type=int, help="of the captions; the model's own number unless given")
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if args.speed:
            speed(folder)
        else:
            quality(args.model, args.shared, folder, args.beams)


if __name__ == "__main__":
    main()
