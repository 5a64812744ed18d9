"""A LAMB model as graphs for ONNX Runtime: `lamb export`. See `lamb.inference.onnx_runtime`, which runs them.

    encoder.onnx           waveform -> h_a                              adapter.onnx   h_a -> z_a
    labels.onnx            h_a -> how probable each label is            guide.onnx     z_a -> bias
    language_model.onnx    a tree of tokens grows (`lamb.export.llama`)
    model.safetensors      the weights, which the graphs point into     onnx.json      what else it takes

The graphs are checked against PyTorch on real sounds before they are put into their place.
"""

import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import extensions
from ..audio import reader as audio
from ..errors import LambError
from ..inference.engine import Engine
from ..inference.loading import FORMAT
from ..inference.onnx_runtime import OnnxRuntime
from ..inference.torch_runtime import TorchRuntime
from ..model import checkpoint
from ..model.lamb import LambModel
from ..model.safetensors_index import entries, fingerprint
from .llama import Llama, float32_copy
from .networks import AdapterGraph, EncoderGraph, GuideGraph, LabelsGraph
from .weights import Weights

OPSET = 18
TOLERANCE = 1e-3  # of tokens, relative to their spread, and of scores: float32 in another order
INT8_TOLERANCE = 0.2
BLOCK = 32  # numbers that share a scale in eight bits


class ExportError(LambError, ValueError):
    """A model that cannot be exported, or graphs that do not give what PyTorch gives."""


def export(name: str | Path, to: Path | None = None, *, int8: bool = False, sounds: Sequence[Path] = ()) -> Path:
    """Write the graphs of the model `name`; returns their folder.

    Args:
        to: a folder that becomes a whole model with float32 weights, LoRA merged; None: the graphs are added to the
            model's own folder, which must be a standalone one, and point into its weights.
        int8: store the language model's matrices as 8-bit integers.
        sounds: what the graphs are checked on, besides noise.

    Raises CheckpointError, UnsupportedModelError, and ExportError where the graphs differ from the model.
    """
    model = extensions.load(name, "cpu")
    model.merge_lora()
    home = checkpoint.find(name)
    folder = to or home
    in_place = folder.resolve() == home.resolve()
    whole = checkpoint.read_facts(home)["standalone"] and model.config.llm.train != "lora"
    if in_place and (int8 or not whole):
        what = "eight bits would replace its weights" if int8 else "its weights are not whole in one file"
        raise ExportError(f"{name}: {what}", "write a new folder with --to DIR")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as scratch:
        new = Path(scratch)
        if in_place:
            for own in ("lamb.json", "model.safetensors"):
                os.link(home / own, new / own)
            shutil.copytree(home / "llm", new / "llm")
        else:
            checkpoint.save(_merged(model), new, card=checkpoint.read_facts(home)["card"])
        write_graphs(model, new, int8)
        check(model, new, sounds, INT8_TOLERANCE if int8 else TOLERANCE)
        for made in sorted(filter(Path.is_file, new.rglob("*"))):
            target = folder / made.relative_to(new)
            target.parent.mkdir(exist_ok=True)
            if not (target.exists() and target.samefile(made)):
                made.replace(target)
    return folder


def write_graphs(model: LambModel, folder: Path, int8: bool = False) -> None:
    """The graphs of `model` beside the whole model that lies in `folder`, and onnx.json."""
    model = float32_copy(model)
    graphs = _graphs(model, int8)
    table = model.llm.embedding_matrix.data_ptr()
    tensors = checkpoint.tensors(model)
    embedding = next(name for name, value in tensors.items() if value.data_ptr() == table)
    file = folder / "model.safetensors"
    if int8:  # what the graphs still read from there
        used = Weights(file, entries(file)).used(graphs.values()) | {embedding}
        save_file({name: tensors[name].contiguous() for name in sorted(used)}, file)
    stored = entries(file)
    weights = Weights(file, stored)
    for name, graph in graphs.items():
        weights.point(graph)
        onnx.save(graph, folder / name)
    runtime, llm, guide = TorchRuntime(model), model.llm, model.guide
    facts = {
        "format": FORMAT,
        "weights": fingerprint(file, stored),
        "precision": "int8" if int8 else "float32",
        "sample_rate": runtime.sample_rate,
        "frame_rate": runtime.frame_rate,
        "dim": runtime.dim,
        "labels": list(runtime.labels),
        "prompt": [llm.before, llm.after],
        "eos": runtime.eos,
        "embedding": embedding,
        "residual": guide.residual if guide is not None else 0.0,
    }
    (folder / "onnx.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _merged(model: LambModel) -> LambModel:
    """`model` with a configuration that says that nothing of it is LoRA any more."""
    from dataclasses import replace

    config = model.config
    full = {
        part: replace(getattr(config, part), train="full" if getattr(config, part).train == "lora" else "frozen")
        for part in ("encoder", "llm")
    }
    model.config = replace(config, **full)
    return model


def _graphs(model: LambModel, int8: bool) -> dict[str, onnx.ModelProto]:
    """The graphs by the names of their files."""
    residual = model.guide is not None and model.guide.residual != 0
    llama = Llama(model.llm.model, model.guide is not None, residual)
    encoder, adapter = EncoderGraph(model), AdapterGraph(model)
    waveform = 0.1 * torch.randn(1, 2 * model.encoder.sample_rate)
    batch, tokens = {0: "clips"}, {0: "clips", 1: "tokens"}
    with torch.inference_mode():
        h_a = encoder(waveform)  # (1, N_a, D)
        h_a, lengths = h_a.repeat(2, 1, 1), torch.tensor([h_a.shape[1], 3])  # padded: masks are traced too
        z_a, z_mask = adapter(h_a, lengths)
    heard, axes = {"h_a": h_a.clone(), "lengths": lengths}, {"h_a": tokens, "lengths": batch}
    graphs = {
        "encoder.onnx": _graph(encoder, {"waveform": waveform}, ["h_a"], {"waveform": {1: "samples"}, "h_a": tokens}),
        "adapter.onnx": _graph(adapter, heard, ["z_a", "mask"], {**axes, "z_a": tokens, "mask": tokens}),
    }
    if model.encoder.labels:
        outputs = {"clip": batch, "frame": tokens}
        graphs["labels.onnx"] = _graph(LabelsGraph(model), heard, list(outputs), {**axes, **outputs})
    if model.guide is not None:
        inputs = {"z_a": z_a.clone(), "lengths": z_mask.sum(1)}
        axes = {"z_a": tokens, "lengths": batch, "bias": batch}
        graphs["guide.onnx"] = _graph(GuideGraph(model), inputs, ["bias"], axes)
    graphs["language_model.onnx"] = _language_model(llama, int8)
    return graphs


def _language_model(llama: Llama, int8: bool) -> onnx.ModelProto:
    clips, new, before, width, layers = 2, 3, 4, llama.embedding.shape[1], len(llama.layers)
    cache = [torch.randn(clips, llama.groups, before, llama.head_dim) for _ in range(2 * layers)]
    names = [f"{kind}_{n}" for n in range(layers) for kind in ("key", "value")]
    inputs = {
        "x": torch.randn(clips, new, width),
        "positions": torch.arange(before, before + new).expand(clips, -1).clone(),
        "mask": torch.ones(clips, new, before + new, dtype=torch.bool).tril(before),
        "at": torch.tensor([0, 2]),
        "bias": torch.randn(clips, llama.embedding.shape[0]),
        "spent": torch.randn(clips, 2, width),
        **dict(zip(names, cache, strict=True)),
    }
    axes = {
        "x": {0: "clips", 1: "new"},
        "positions": {0: "clips", 1: "new"},
        "mask": {0: "clips", 1: "new", 2: "all"},
        "at": {0: "asked"},
        "bias": {0: "clips"},
        "spent": {0: "clips", 1: "asked"},
        "logits": {0: "clips", 1: "asked"},
        **{name: {0: "clips", 2: "before"} for name in names},
        **{f"{name}_grown": {0: "clips", 2: "all"} for name in names},
    }
    outputs = ["logits", *(f"{name}_grown" for name in names)]
    if int8:  # of most of the weights
        return _quantised(_graph(llama, inputs, outputs, axes, fold=True))
    return _graph(llama, inputs, outputs, axes)


def _graph(
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
    fold: bool = False,
) -> onnx.ModelProto:
    """A module that was traced with `inputs` by name."""
    content: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of asserts, and that this exporter has a successor
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            content,  # type: ignore[arg-type]
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: axes[name] for name in (*inputs, *outputs)},
            opset_version=OPSET,
            dynamo=False,  # the new one wants no assert that looks at numbers
            do_constant_folding=fold,  # else the weights stay those of the checkpoint
        )
    return onnx.load_from_string(content.getvalue())


def _quantised(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the matrices of its products as 8-bit integers w = scale (q - 128), a scale for BLOCK of a column.

    What they are multiplied by is rounded to 8 bits as it comes (accuracy level 4), with a scale for BLOCK numbers of a
    token: with one for the whole batch, a clip's caption would depend on its neighbours.
    """
    matrices = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in matrices:
            continue
        matrix = matrices.pop(node.input[1])
        w = onnx.numpy_helper.to_array(matrix).T  # (N, K)
        graph.graph.initializer.remove(matrix)
        blocks = np.pad(w, ((0, 0), (0, -w.shape[1] % BLOCK))).reshape(len(w), -1, BLOCK)
        scale = np.abs(blocks).max(-1, keepdims=True) / 127
        q = np.round(blocks / np.where(scale, scale, 1)) + 128
        made = {f"{matrix.name}_q": q.astype(np.uint8), f"{matrix.name}_scale": scale[..., 0].astype(np.float32)}
        graph.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in made.items())
        facts = {"K": w.shape[1], "N": len(w), "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
        new = onnx.helper.make_node(
            "MatMulNBits", [node.input[0], *made], list(node.output), domain="com.microsoft", **facts
        )
        node.CopyFrom(new)
    graph.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return graph


def check(model: LambModel, folder: Path, sounds: Sequence[Path], tolerance: float) -> None:
    """ExportError where the graphs in `folder` do not give what `model` gives: tokens, bias, captions and scores."""
    ours, theirs = Engine(model), Engine(OnnxRuntime(folder))
    rate = ours.sample_rate
    rng = np.random.default_rng(0)
    waveforms = [0.1 * rng.standard_normal(round(seconds * rate)).astype(np.float32) for seconds in (0.4, 2.0, 11.0)]
    waveforms += [audio.load(sound, rate)[: 10 * rate] for sound in sounds]
    waveforms = [x for x in waveforms if not audio.is_silent(x)]
    h_a = _alike("encoder.onnx", [engine.encode(waveforms, 3) for engine in (ours, theirs)], TOLERANCE)
    _alike("adapter.onnx", [engine.audio_tokens(h_a, 3) for engine in (ours, theirs)], TOLERANCE)
    options = model.config.decode
    for k, (one, other) in enumerate(zip(*(engine.describe(h_a, options) for engine in (ours, theirs)), strict=True)):
        if abs(one[0].score - other[0].score) > tolerance:
            raise ExportError(
                f"the graphs say {other[0].text!r} ({other[0].score:.4f}) where PyTorch says {one[0].text!r} "
                f"({one[0].score:.4f}), for sound {k}",
                "this is a bug of the export: please report it",
            )


def _alike(what: str, pair: list[list[np.ndarray]], tolerance: float) -> list[np.ndarray]:
    """The first of both; ExportError where they are further apart than `tolerance` times their spread."""
    for one, other in zip(*pair, strict=True):
        if one.shape != other.shape or np.abs(one - other).max() > tolerance * one.std():
            raise ExportError(f"{what}: differs from PyTorch", "this is a bug of the export: please report it")
    return pair[0]
