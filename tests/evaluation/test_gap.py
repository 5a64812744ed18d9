"""The modality gap: its measures in closed form, the same tokens as the captioner's, and a picture."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F

from lamb.audio.reader import AudioWarning, centred
from lamb.cli import app as cli
from lamb.data import sources
from lamb.data.manifest import Clip, ManifestError, write
from lamb.errors import PackageError
from lamb.evaluation import gap
from lamb.evaluation.gap import Embeddings, captioned, embed, measures, picture, recall
from lamb.inference import engine
from lamb.inference.captioner import Captioner
from lamb.inference.generation import Hypothesis
from lamb.inference.picture import PictureError, check, save
from lamb.inference.torch_runtime import TorchRuntime
from lamb.model.aligner import cs_divergence
from lamb.model.padding import pad
from lamb.serving.page import guided

CAPTIONS = [("A dog barks.",), ("Rain falls, then a siren wails.", "Rain."), ("Church bells ring.", "A cat meows.")]


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Three recordings of different lengths, the last one longer than a window of 1 s, with five captions."""
    rng = np.random.default_rng(0)
    for k, seconds in enumerate((0.5, 0.8, 2.3)):
        soundfile.write(tmp_path / f"{k}.wav", 0.1 * rng.standard_normal(int(16000 * seconds)), 16000)
    return [Clip(str(k), str(tmp_path / f"{k}.wav"), captions=texts, split="test") for k, texts in enumerate(CAPTIONS)]


def embeddings(audio: Any, text: Any, clip: list[int] | None = None) -> Embeddings:
    audio, text = torch.tensor(audio, dtype=torch.float32), torch.tensor(text, dtype=torch.float32)
    return Embeddings(audio, text, torch.tensor(clip) if clip else torch.arange(len(audio)), cs_token=0.25, failed=0)


def test_no_gap():
    points = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).tolist()
    found = measures(embeddings(points, points))
    assert (found["clips"], found["captions"], found["cs_token"]) == (20, 20, 0.25)
    for name in ("l2", "l2_unit", "cs_global"):
        assert found[name] == pytest.approx(0, abs=1e-6)
    assert found["cosine"] == pytest.approx(1)
    assert all(value == 1 for name, value in found.items() if "_r" in name)


def test_a_gap_of_length_and_one_of_direction():
    along = measures(embeddings([[3.0, 0], [0, 3.0]], [[1.0, 0], [0, 1.0]]))
    assert (along["l2"], along["cosine"], along["l2_unit"]) == pytest.approx((2, 1, 0), abs=1e-6)
    assert (along["audio_norm"], along["text_norm"]) == (3, 1)
    across = measures(embeddings([[1.0, 0]], [[0, 1.0]]))
    assert (across["l2"], across["cosine"], across["l2_unit"]) == pytest.approx((2**0.5, 0, 2**0.5))
    # one point a set: log k(x, x) + log k(y, y) - 2 log k(x, y) = |x - y|^2 / s^2
    assert across["cs_global"] == pytest.approx(2)


def test_every_caption_counts_alike_and_the_first_stands_for_the_clip():
    found = embeddings([[1.0, 0], [0, 1.0]], [[1.0, 0], [0, 2.0], [0, 1.0]], [0, 0, 1])
    assert found.first.tolist() == [0, 2]
    assert measures(found)["l2"] == pytest.approx(5**0.5 / 3)
    assert measures(found)["cs_global"] == pytest.approx(0, abs=1e-6)


def test_the_global_divergence_in_several_sets(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a, t = torch.randn(10, 4, generator=generator), torch.randn(10, 4, generator=generator)
    monkeypatch.setattr(gap, "SET", 4)  # sets of 4, 3 and 3
    parts = [
        cs_divergence(x, y, sigma=1.0, normalise=True)
        for x, y in zip(a.split([4, 3, 3]), t.split([4, 3, 3]), strict=True)
    ]
    expected = (4 * parts[0] + 3 * parts[1] + 3 * parts[2]) / 10
    assert measures(embeddings(a.tolist(), t.tolist()))["cs_global"] == pytest.approx(float(expected), rel=1e-5)


def test_recall_counts_any_caption_of_the_clip():
    audio = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=-1)
    text = F.normalize(torch.tensor([[0.0, 1.0], [1.0, 0.1], [0.2, 1.0]]), dim=-1)
    owner = torch.tensor([0, 0, 1])  # the first caption of clip 0 sounds like clip 1
    assert recall(audio, text, torch.arange(2), owner) == [0.5, 1, 1]  # clip 0 by its second caption
    assert recall(text, audio, owner, torch.arange(2)) == pytest.approx([2 / 3, 1, 1])


def test_recall_expects_the_share_where_items_are_alike():
    """Against all orders of six items, some of them equal."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        items = torch.tensor(rng.integers(0, 3, 6) / 4.0)[:, None]  # similarity to the query 1
        owner = torch.tensor(rng.permutation([0, 0, 1, 1, 2, 3]))
        expected = np.zeros(3)
        orders = [sorted(order, key=lambda k: -float(items[k])) for order in permutations(range(6))]  # stable
        for order in orders:
            rank = next(place for place, k in enumerate(order, 1) if owner[k] == 0)
            expected += [rank <= 1, rank <= 5, rank <= 10]
        found = recall(torch.ones(1, 1, dtype=items.dtype), items, torch.tensor([0]), owner)
        assert found == pytest.approx(expected / len(orders))


def test_a_model_that_maps_all_to_one_point_finds_by_chance():
    one = torch.ones(50, 3) / 3**0.5
    assert recall(one, one, torch.arange(50), torch.arange(50)) == pytest.approx([0.02, 0.1, 0.2])


def test_the_same_numbers_as_a_training_step(make_model, clips):
    """One caption a clip: L2, cosine and the token divergence of the pass that training logs."""
    model = make_model()
    short = [replace(clip, captions=clip.captions[:1]) for clip in clips]
    found = measures(embed(model, short))
    sounds = [centred(soundfile.read(clip.path, dtype="float32")[0]) for clip in short]
    waveform, mask = pad(sounds)
    ids, ids_mask = model.llm.tokenize([clip.captions[0] for clip in short])
    with torch.no_grad():
        out = model(waveform, mask, ids, ids_mask)
        step = gap.alignment.gap(out.z_a, out.z_a_mask, out.z_t, out.z_t_mask)
        token = cs_divergence(out.z_a, out.z_t, out.z_a_mask, out.z_t_mask, sigma=1.0, normalise=True).mean()
    assert found["l2"] == pytest.approx(float(step["l2"]), rel=1e-4)
    assert found["cosine"] == pytest.approx(float(step["cosine"]), rel=1e-4, abs=1e-5)
    assert found["cs_token"] == pytest.approx(float(token), rel=1e-4)


def test_a_clip_is_the_same_in_any_batch(make_model, clips):
    whole, alone = (embed(make_model(decode={"batch_size": size}), clips) for size in (3, 1))
    assert torch.allclose(whole.audio, alone.audio, atol=1e-5)
    assert torch.allclose(whole.text, alone.text, atol=1e-6)
    assert whole.clip.tolist() == alone.clip.tolist() == [0, 1, 1, 2, 2]
    assert whole.cs_token == pytest.approx(alone.cs_token, rel=1e-5)


RECORDINGS = {  # seconds of sound (negative: of silence), and the windows of a second that stand for it
    "one window and a sliver": ([1.05], 1),
    "silence in the middle": ([1.0, -1.0, 0.5], 2),
    "silence but for its end": ([-2.0, 0.5], 1),
    "more windows than are kept": ([9.5], 6),
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_what_the_captioner_hears(make_model, tmp_path, monkeypatch, name):
    """The audio tokens are those that captions are written from, whatever the recording."""
    seconds, kept = RECORDINGS[name]
    rng = np.random.default_rng(0)
    x = np.concatenate([(s > 0) * 0.1 * rng.standard_normal(int(abs(s) * 16000)) for s in seconds])
    soundfile.write(tmp_path / "a.wav", x, 16000)
    clip = Clip("a", str(tmp_path / "a.wav"), captions=("Noise.",))
    model = make_model(decode={"window": 1.0, "hop": 1.0})
    captioner = Captioner(model)
    heard, counts = [], []

    def listen(runtime: Any, decoding: Any, *rest: Any) -> Any:
        return [[Hypothesis("Noise.", -1.0)]]

    def hear(self: Any, z_a: Any, mask: Any, guide: float) -> None:
        heard.append((torch.from_numpy(z_a), torch.from_numpy(mask)))

    def count(h_a: Any, mask: Any) -> Any:
        counts.append(int(mask.sum()))
        return audio_tokens(h_a, mask)

    audio_tokens = model.audio_tokens
    monkeypatch.setattr(engine, "generate", listen)
    monkeypatch.setattr(TorchRuntime, "decoding", hear)
    monkeypatch.setattr(model, "audio_tokens", count)
    captioner.caption([clip])
    found = embed(model, [clip])
    ((z_a, mask),) = heard
    assert torch.allclose(found.audio, gap.alignment.pool(z_a, mask), atol=1e-5)
    guided(captioner, x.astype(np.float32))
    assert len(set(counts)) == 1, "captioner, gap and page hear as many tokens"
    window = captioner.engine.encode([x[-16000:].astype(np.float32)], 1)[0]
    assert math.isclose(counts[0], kept * len(window), abs_tol=len(window) / 2), "the last window may be half as long"


def test_a_clip_without_sound_is_left_out_and_told(make_model, clips, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    silent = replace(clips[0], path=str(tmp_path / "silent.wav"))
    with pytest.warns(AudioWarning, match=r"left out: .*silent\.wav: there is no sound in it"):
        found = embed(make_model(), [silent, *clips])
    assert (measures(found)["clips"], found.failed) == (3, 1)


def test_a_part_of_a_recording(make_model, clips, tmp_path):
    x, rate = soundfile.read(clips[2].path)
    soundfile.write(tmp_path / "cut.wav", x[rate : rate + rate // 2], rate)
    part = replace(clips[2], start=1.0, duration=0.5)
    cut = replace(clips[2], path=str(tmp_path / "cut.wav"))
    assert torch.allclose(embed(make_model(), [part]).audio, embed(make_model(), [cut]).audio, atol=1e-4)


def test_what_cannot_be_read_is_left_out_and_told(make_model, clips, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    broken = [replace(clips[0], id="x", path=str(tmp_path / "bad.wav")), replace(clips[0], path="missing.wav")]
    with pytest.warns(AudioWarning, match=r"left out: .*bad\.wav"):
        found = embed(make_model(), [broken[0], *clips, broken[1]])
    assert (measures(found)["clips"], found.failed) == (3, 2)
    assert torch.equal(found.audio, embed(make_model(), clips).audio)
    with pytest.raises(ManifestError, match="none of the clips can be heard"), pytest.warns(AudioWarning):
        embed(make_model(), broken)


def test_labelled_clips_are_captioned_always_alike(sounds_folder):
    clips = captioned(sources.clips(sounds_folder, "development"))
    assert [clip.labels[0] in clip.captions[0].lower() for clip in clips if clip.labels[0] != "rooster"] == [True] * 3
    assert clips == captioned(sources.clips(sounds_folder))[3::4]
    assert captioned([Clip("a", "a.wav", captions=("Mine.",), labels=("dog",))])[0].captions == ("Mine.",)
    assert captioned([Clip("a", "a.wav", captions=(" ",), labels=("dog", "rain"))])[0].captions[0].strip()


@pytest.mark.parametrize(
    ("labels", "problem"),
    [(("unicorn",), "clip 'a': labels unicorn have no phrases"), ((), "clip 'a': has neither caption nor label")],
)
def test_clips_without_words(labels, problem):
    with pytest.raises(ManifestError, match=problem):
        captioned([Clip("a", "a.wav", labels=labels)])


MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


def cloud(scale: float = 1.0, size: int = 8) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    points = scale * torch.randn(2, size, 6, generator=generator)
    return embeddings((points[0] + 2 * scale).tolist(), points[1].tolist())


@pytest.mark.parametrize("ending", MAGIC)
def test_pictures(tmp_path, ending):
    file = tmp_path / f"gap.{ending}"
    picture([("one", cloud()), ("other", cloud(3))], file)
    assert file.read_bytes().startswith(MAGIC[ending])
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(("scale", "same"), [(3.0, True), (30.0, False)])
def test_panels_share_their_axes_unless_one_would_be_a_dot(tmp_path, monkeypatch, scale, same):
    drawn = []
    monkeypatch.setattr(gap, "save", lambda figure, file: drawn.extend(axes.get_xlim() for axes in figure.axes))
    picture([("one", cloud()), ("other", cloud(scale))], tmp_path / "gap.png", vectors="raw")
    assert (drawn[0] == drawn[1]) is same


def test_the_projection_keeps_distances_of_a_plane():
    """Points of a plane, turned into six dimensions: two dimensions show them all, the audio on the right."""
    generator = torch.Generator().manual_seed(0)
    plane, _ = torch.linalg.qr(torch.randn(6, 2, generator=generator))
    flat = torch.randn(20, 2, generator=generator)
    flat[:10, 0] += 5
    points = flat @ plane.T
    found, labels = gap._projected(embeddings(points[:10].tolist(), points[10:].tolist()), umap=False)
    assert torch.allclose(
        torch.cdist(torch.tensor(found), torch.tensor(found)).float(), torch.cdist(flat, flat), atol=1e-4
    )
    assert (found[:10].mean(0) > found[10:].mean(0)).all()
    shares = [int(label.split("(")[1].split("%")[0]) for label in labels]
    assert sum(shares) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(("vectors", "shown"), [("unit", "L2 at unit"), ("raw", "L2 "), ("both", "L2 at unit")])
def test_which_vectors_are_drawn(tmp_path, monkeypatch, vectors, shown):
    titles = []
    monkeypatch.setattr(gap, "save", lambda figure, file: titles.extend(a.get_title() for a in figure.axes))
    picture([("one", cloud()), ("other", cloud())], tmp_path / "gap.png", vectors=vectors)
    assert len(titles) == (4 if vectors == "both" else 2)
    assert shown in titles[0]
    assert ("unit" in titles[-1]) is (vectors == "unit")


def test_directions_alone():
    near = cloud()
    far = replace(near, audio=near.audio * torch.linspace(1, 9, 8)[:, None])
    same, other = (gap._projected(found, umap=False, unit=True)[0] for found in (near, far))
    assert np.allclose(same, other, atol=1e-5)
    assert not np.allclose(gap._projected(near, umap=False)[0], gap._projected(far, umap=False)[0], atol=1)


def test_one_clip_can_be_drawn(tmp_path):
    picture([("one", cloud(size=1))], tmp_path / "gap.svg")
    with pytest.raises(PictureError, match="1 clips are too few for UMAP"):
        picture([("one", cloud(size=1))], tmp_path / "gap.svg", umap=True)


@pytest.mark.slow
def test_umap_is_repeatable():
    first, again = (gap._projected(cloud(size=20), umap=True)[0] for _ in range(2))
    assert first.shape == (40, 2)
    assert np.array_equal(first, again)


def test_a_picture_comes_whole_or_not_at_all(tmp_path):
    class Broken:
        def savefig(self, path: Path, **_: object) -> None:
            path.write_bytes(b"half")
            raise OSError("disk full")

    (tmp_path / "gap.png").write_bytes(b"before")
    with pytest.raises(OSError, match="disk full"):
        save(Broken(), tmp_path / "gap.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"gap.png": b"before"}


def test_pictures_that_cannot_be_made(tmp_path, monkeypatch):
    with pytest.raises(PictureError, match=r"gap\.xyz: a picture ends in one of .*pdf, .*png"):
        check(tmp_path / "gap.xyz")
    with pytest.raises(PictureError, match="cannot be written; choose a file in a folder"):
        check(tmp_path / "none" / "gap.png")
    monkeypatch.setitem(sys.modules, "umap", None)
    check(tmp_path / "gap.png")
    with pytest.raises(PackageError, match=r"needs umap-learn; pip install 'lamb-aac\[plot\]'"):
        check(tmp_path / "gap.png", umap=True)
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    with pytest.raises(PackageError, match=r"needs matplotlib; pip install 'lamb-aac\[plot\]'"):
        check(tmp_path / "gap.png")


@pytest.fixture
def lamb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lamb", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return int(exit.value.code or 0), *capsys.readouterr()

    return run


def test_the_command(lamb, model_folder, clips, tmp_path):
    write(clips, tmp_path / "manifest.jsonl")
    common = ("gap", model_folder, tmp_path / "manifest.jsonl", "--split", "test", "--against", model_folder)
    code, out, _ = lamb(*common, "--json", "--plot", tmp_path / "gap.svg")
    one, other = json.loads(out)
    assert (code, one, one["clips"], one["captions"]) == (0, other, 3, 5)
    assert all(math.isfinite(value) for name, value in one.items() if name != "model")
    assert (tmp_path / "gap.svg").stat().st_size > 1000
    code, out, _ = lamb("gap", model_folder, tmp_path)  # a folder that holds a manifest.jsonl
    assert (code, f"{one['cosine']:.4f}" in out) == (0, True)


def test_the_command_tells_what_it_cannot_do(lamb, model_folder, sounds_folder, clips, tmp_path):
    assert lamb("gap", model_folder, sounds_folder, "--umap")[0] == 2
    code, _, err = lamb("gap", "no model is loaded", sounds_folder, "--plot", tmp_path / "gap.xyz")
    assert (code, "a picture ends in" in err) == (2, True)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    write([*clips, replace(clips[0], id="bad", path=str(tmp_path / "bad.wav"))], tmp_path / "m.jsonl")
    code, out, err = lamb("gap", model_folder, tmp_path / "m.jsonl")
    assert (code, "clips" in out, "bad.wav" in err) == (1, True, True)
