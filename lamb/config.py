"""All defaults of `lamb`: frozen dataclasses that are read from YAML recipes and stored in every checkpoint.

Marks, as in `docs/method.md`: [P] the paper, [A] the authors' earlier captioner, [O] our choice.
A recipe states only values that differ from these defaults. An unknown key or a wrong type is an error.
"""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from .errors import LambError

T = TypeVar("T")

DEFAULT_MODEL = "tiny"  # the bundled model that is used where none is named


class ConfigError(LambError, ValueError):
    """A recipe or configuration that cannot be used: where, the problem and the remedy."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation of attention projections q and v. [A]"""

    rank: int = 8  # [A]
    alpha: float = 32.0  # [A]
    dropout: float = 0.1  # [A]


@dataclass(frozen=True)
class EncoderConfig:
    """The audio encoder, CED in the paper. [P]"""

    name: str = "ced"  # a key of lamb.model.encoders.ENCODERS: ced, efficientat, huggingface
    source: str | None = None  # hub id, folder or file of its weights; None: random, or inside the checkpoint
    options: Mapping[str, Any] = field(default_factory=dict)  # arguments of the encoder's class
    train: Literal["frozen", "lora", "full"] = "lora"  # frozen base + LoRA [A]
    lora: LoraConfig = LoraConfig()


@dataclass(frozen=True)
class AdapterConfig:
    """Two-Stream Adapter [P], or a baseline in its place."""

    kind: Literal["two_stream", "linear", "qformer"] = "two_stream"
    semantic: bool = True  # whether there is a semantic stream
    temporal: bool = True  # whether there is a temporal stream
    semantic_queries: int = 8  # N_s [P]
    temporal_queries: int = 8  # N_t [P]
    fusion_queries: int = 32  # N_g [P]; also the queries of the Q-Former
    query_std: float = 0.02  # initial standard deviation of the queries [O]
    # norm of an audio token at the start, in norms of the LLM's embeddings; None: that of PyTorch's linear layer [O]
    scale: float | None = None
    centred: bool = False  # audio tokens start around the mean of the LLM's embeddings [O]
    kernels: tuple[int, ...] = (3, 5, 7)  # sizes of the temporal stream's convolutions [O]
    head_dim: int = 64  # width of an attention head [O]
    layers: int = 2  # of the Q-Former [O]


@dataclass(frozen=True)
class AlignerConfig:
    """Cross-Modal Aligner, training only. [P]; a weight of 0 leaves a term out."""

    enabled: bool = True
    global_weight: float = 1.0  # a1 [O]
    token_weight: float = 1.0  # a2 [O]
    infonce_weight: float = 1.0  # a3 [O]
    sigma: float | Literal["median"] = 1.0  # kernel width s [O]
    normalise: bool = True  # unit vectors inside the kernel [O]
    temperature: float = 0.07  # InfoNCE's initial temperature [O]
    max_scale: float = 100.0  # upper bound of 1 / temperature [O]


@dataclass(frozen=True)
class GuideConfig:
    """Token Guide. [P]"""

    enabled: bool = True
    distance: Literal["l2", "l1", "cosine"] = "l2"  # squared L2 [P]
    reduce: Literal["mean", "min"] = "mean"  # over the audio tokens [O]
    beta: float | None = None  # initial strength; None: by `spread` [O]
    spread: float = (
        0.5  # standard deviation, over the vocabulary, of the part of the bias that differs between clips [O]
    )


@dataclass(frozen=True)
class LLMConfig:
    """The language model, LLaMA-2 7B + LoRA in the paper. [P]"""

    source: str | None = None  # hub id, folder or GGUF file (lamb.model.gguf); None: inside the checkpoint
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    train: Literal["frozen", "lora", "full"] = "lora"  # [P]
    lora: LoraConfig = LoraConfig()
    lora_targets: tuple[str, ...] | None = None  # names of q and v projections; None: by the model's kind
    prompt: str = "USER: <audio> {instruction}\nASSISTANT:"  # [A]; <audio> stands for the audio tokens
    instruction: str = "Please describe the audio."  # [A]
    lead: str = ""  # stands before each caption: a blank, for a tokenizer that puts none there by itself [O]


@dataclass(frozen=True)
class LossConfig:
    """L = alignment * L_cma + guided * L_tg + plain * L_dec. [P]; all 1 [O]"""

    alignment: float = 1.0  # l1
    guided: float = 1.0  # l2: cross entropy on the guided logits
    plain: float = 1.0  # l3: cross entropy on the raw logits


@dataclass(frozen=True)
class WeighConfig:
    """Candidate captions are ranked by the confidence of each sound that they name; see lamb.inference.weighing. [O]"""

    enabled: bool = False  # needs an encoder with label heads
    sound: tuple[float, ...] = (0.0, 0.4, 0.4, 0.4, 0.0, 0.0)  # w, the weights in the confidence of a sound
    caption: tuple[float, float, float] = (0.0, 1.0, 0.0)  # (a, b, u), the weights in the confidence of the caption
    doubt: float = 1.0  # cost of naming a sound that is absent; 0: every sound that was found is named
    upper: float = 0.5  # value of naming an upper class, where its exact class has the value 1
    wording: float = 0.1  # weight of the mean log probability of the tokens
    offered: int = 2  # number of the most probable kinds and upper classes that are always candidates


@dataclass(frozen=True)
class DecodeConfig:
    """How a caption is generated, and how its score becomes a confidence."""

    beams: int = 4  # [A]
    max_new_tokens: int = 50  # [O]
    no_repeat_ngram: int = 0  # no run of this many tokens occurs twice; an extension, 0: off [O]
    length_penalty: float = 1.0  # exponent of the length that divides a beam's score [O]
    temperature: float = 1.0  # sampling only [O]
    top_p: float = 0.95  # sampling only [O]
    guide: float = 1.0  # factor of the Token Guide's bias; 0: without it [O]
    window: float = 10.0  # seconds; longer recordings are encoded window by window [O]
    hop: float = 10.0  # seconds between the starts of two windows [O]
    batch_size: int = 16  # clips generated together [O]
    weigh: WeighConfig = WeighConfig()
    # (a, b) of confidence = sigmoid(a + b * logit(exp(score))) [O]
    confidence: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class ChannelDropoutConfig:
    """In training, a clip lacks a share of the encoder's channels. [O]"""

    rate: float = 0.0  # 0: off


@dataclass(frozen=True)
class ClassPrototypesConfig:
    """Encoder tokens are shifted towards the prototypes of the classes that they resemble. [O]"""

    enabled: bool = False


@dataclass(frozen=True)
class PositionalEncodingConfig:
    """Sinusoids of their time are added to the encoder's tokens, for an encoder whose tokens do not tell it. [O]"""

    enabled: bool = False


@dataclass(frozen=True)
class ResidualGuideConfig:
    """The Token Guide subtracts the generated tokens from the audio evidence. [O]"""

    enabled: bool = False
    strength: float = 1.0  # factor of the learnt gamma in decoding; higher values repeat less


@dataclass(frozen=True)
class OneMentionConfig:
    """No word that names a sound is generated twice in a caption. [O]"""

    enabled: bool = False


@dataclass(frozen=True)
class RerankingConfig:
    """The similarity of caption and audio contributes to the choice among the beams. [O]"""

    weight: float = 0.0  # of the similarity, against the mean log probability; 0: off


@dataclass(frozen=True)
class ExtensionsConfig:
    """The extensions of the method in `lamb.extensions`; all are off by default. [O]"""

    channel_dropout: ChannelDropoutConfig = ChannelDropoutConfig()
    class_prototypes: ClassPrototypesConfig = ClassPrototypesConfig()
    positional_encoding: PositionalEncodingConfig = PositionalEncodingConfig()
    residual_guide: ResidualGuideConfig = ResidualGuideConfig()
    one_mention: OneMentionConfig = OneMentionConfig()
    reranking: RerankingConfig = RerankingConfig()


@dataclass(frozen=True)
class LambConfig:
    """A LAMB model: everything that is needed to build it again."""

    encoder: EncoderConfig = EncoderConfig()
    adapter: AdapterConfig = AdapterConfig()
    aligner: AlignerConfig = AlignerConfig()
    guide: GuideConfig = GuideConfig()
    llm: LLMConfig = LLMConfig()
    loss: LossConfig = LossConfig()
    decode: DecodeConfig = DecodeConfig()
    extensions: ExtensionsConfig = ExtensionsConfig()


@dataclass(frozen=True)
class DataConfig:
    """The training data."""

    sounds: str | tuple[str, ...] | None = None  # folder or folders of labelled recordings, see lamb.data.sources
    texts: str | None = None  # folder of caption texts, for the language model
    manifest: str | None = None  # captioned clips, JSONL or CSV (see lamb.data.manifest), instead of `sounds`
    split: str = "train"  # the split of the manifest to train on
    validation: str | None = "val"  # the split of the manifest to validate on; None: no validation
    cache: str | None = None  # folder for the tokens of a frozen encoder: clips are encoded once, uncropped [O]
    # SpecAugment (lamb.model.encoders.spec_augment) for an encoder that learns, such as CED [A]
    spec_augment: bool = False
    unreadable: float = 0.01  # training stops when more than this share of the clips cannot be read
    seconds: float = (
        30.0  # longest training clip; a longer one is cropped at random. It is heard in windows of decode [O]
    )
    gain: float = 0.0  # largest random change of a clip's level, in dB; an extension, the paper has none [O]
    # shares of scenes with one recording, several in sequence, several at the same time [O]
    shares: tuple[float, float, float] = (0.5, 0.27, 0.23)
    parents: float = 0.0  # share of sounds that are degraded, and named by an upper class [O]
    plain: float = 0.0  # share of scenes with recordings as they are, not varied [O]
    composed: float = 0.5  # stage language_model: share of captions composed from the phrase bank [O]
    workers: int = 1  # background processes that make batches


@dataclass(frozen=True)
class LanguageModelConfig:
    """A small LLaMA trained from scratch on captions (stage language_model). [O]"""

    vocabulary: int = 3000
    width: int = 256
    layers: int = 4
    heads: int = 4
    mlp: int = 704


@dataclass(frozen=True)
class DistillConfig:
    """The teacher of an encoder and its losses (stage distill); see lamb.training.distill. [O]"""

    teacher: str | None = None  # official EfficientAT checkpoint; None: learn from labels alone
    hints: float = 10.0  # weight of the distance to its feature maps
    layerwise: bool = False  # each layer learns on its own, without our labels; False: all of them together, with them
    heads: bool = False  # the label heads learn alone, on the encoder of `init`


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and a cosine schedule. [P]"""

    lr: float = 5e-5  # [P] pretraining; 3e-6 when fine-tuning
    llm_lr: float | None = None  # of the language model and the encoder; None: as lr [O]
    weight_decay: float = 1e-6  # [P]; none on parameters with fewer than 2 dimensions [O]
    grad_clip: float = 1.0  # largest norm of the gradient [O]
    batch: int = 32  # clips, over all processes [P]
    accumulate: int = 1  # batches whose gradients are summed in a step; see lamb.training.loop
    steps: int = 1000  # [O]
    warmup: int = 50  # steps [O]
    epochs: int | None = None  # of a manifest, instead of steps; 30 in the paper [P]
    warmup_epochs: int = 2  # instead of warmup, where epochs are given [P]
    # compute the activations of the LLM's blocks again in the backward pass: less memory, about a third more time
    checkpointing: bool = False
    shard: bool = False  # distribute the LLM's blocks over the processes (FSDP), if it is too large for each of them
    ema_decay: float = 0.0  # of the exponential moving average of the weights, which is saved; 0: off [O]


@dataclass(frozen=True)
class TrainConfig:
    """A recipe: one stage of training."""

    stage: Literal["distill", "language_model", "lamb"] = "lamb"
    out: str = "runs/lamb"  # folder of the result
    seed: int = 42  # [O]
    device: Literal["auto", "cpu"] = "auto"  # auto: a GPU if there is one
    # stage lamb: a model to continue from, instead of `model`; stage distill: an encoder to begin with
    init: str | None = None
    precision: Literal["auto", "bfloat16"] = "auto"  # of autocast; auto: bfloat16 on a GPU, float32 on a CPU [O]
    threads: int | None = None  # of PyTorch on a CPU; None: its own choice
    save_every: int = 200  # steps between saved states with a check; with optim.epochs, checks are after each epoch
    keep_states: int = 2  # how many of the latest states are kept
    model: LambConfig = LambConfig()
    language_model: LanguageModelConfig = LanguageModelConfig()
    data: DataConfig = DataConfig()
    distill: DistillConfig = DistillConfig()
    optim: OptimConfig = OptimConfig()
    card: Mapping[str, str] = field(default_factory=dict)  # facts for the checkpoint: trained_on, licence, ...


@dataclass(frozen=True)
class ScenesConfig:
    """Captioned scenes rendered to disk (see lamb.data.render). [O]"""

    sounds: str  # folder of labelled recordings with a manifest.csv
    train: int = 6000  # number of scenes made of its training recordings
    test: int = 600  # number of scenes made of its development recordings
    seconds: float = 6.0  # longest scene
    shares: tuple[float, float, float] = (1.0, 1.0, 1.0)  # as in DataConfig
    wordings: int = 5  # most captions of a scene
    seed: int = 1


@dataclass(frozen=True)
class TableConfig:
    """A table of an ablation: its rows, and what they are compared with."""

    title: str
    rows: Mapping[str, str]  # the label of a row: the variant that it shows
    against: str | None = None  # the variant that the others are compared with; None: the first one of the recipe
    columns: tuple[str, ...] = ("l2", "cosine", "bleu_4", "rouge_l", "cider_d", "named")  # see lamb.training.tables


@dataclass(frozen=True)
class ContrastsConfig:
    """The questions of an ablation that are declared before its runs; see lamb.training.contrasts. [O]"""

    rows: Mapping[str, str]  # the label of a question: the variant that answers it
    against: str  # the variant that they are compared with
    seeds: tuple[int, ...] = ()  # more seeds, of these variants alone; their runs come first
    margin: float = 0.02  # nats a token: a smaller difference in cross entropy counts as none


@dataclass(frozen=True)
class AblationConfig:
    """A recipe of `lamb ablate`: variants of one training recipe, each with several seeds, in tables."""

    base: str  # the training recipe
    variants: Mapping[str, tuple[str, ...]]  # name: settings (key=value) that differ from the base
    tables: Mapping[str, TableConfig]
    scenes: ScenesConfig | None = None  # what all of them are trained and tested on ...
    manifest: str | None = None  # ... or captioned clips, see lamb.data.manifest
    train: str = "train"  # the split of the manifest to train on
    test: str = "test"  # the split of the manifest to test on
    contrasts: ContrastsConfig | None = None
    prefix: str = ""  # of the names of its blocks in a document that has those of another ablation, too
    settings: tuple[str, ...] = ()  # key=value, of all variants
    seeds: tuple[int, ...] = (1, 2, 3)
    jobs: int = 1  # runs at a time; with several, settings should keep each to its share of the cores: threads=1
    out: str = "runs/ablation"


def _option(default: Any, metavar: str, help: str, group: str = "Options", **bounds: float) -> Any:
    """A field that is also an option of the command line: its name, default, help and bounds are stated here alone."""
    return field(default=default, metadata={"metavar": metavar, "help": help, "group": group, **bounds})


@dataclass(frozen=True)
class DecodeLimits:
    """How a file is decoded in a process of its own, and the resources that this may use. [O]"""

    seconds: float = 20.0  # of processor time; 0: no limit
    seconds_per_mb: float = 10.0  # of further processor time for each megabyte of the file
    memory: float = 1024.0  # MB of address space, of which 210 are used at the start
    track: int | None = None  # which audio track of a video, from 1; None: the default one, else the loudest


@dataclass(frozen=True)
class ServeConfig:
    """The limits of `lamb serve` and how its clients share the machine; each field is an option of the command. [O]"""

    host: str = _option("127.0.0.1", "ADDRESS", "The address to listen on; 0.0.0.0 is every interface.")
    port: int = _option(8000, "N", "The port to listen on; 0 picks a free one.", min=0, max=65535)
    max_size: float = _option(25.0, "MB", "Largest upload.", "Limits", min=0.001)
    max_duration: float = _option(600.0, "SECONDS", "Longest recording.", "Limits", min=0.1)
    max_channels: int = _option(8, "N", "Most channels of a recording.", "Limits", min=1)
    max_rate: int = _option(192_000, "HZ", "Highest sample rate of a recording.", "Limits", min=4000)
    upload_timeout: float = _option(60.0, "SECONDS", "Time for a request to arrive in full.", "Limits", min=0.1)
    decode_timeout: float = _option(30.0, "SECONDS", "Time to decode a recording.", "Limits", min=0.1)
    decode_memory: float = _option(
        1024.0, "MB", "Address space of a decoding process, of which 210 MB are used at its start.", "Limits", min=256
    )
    queue: int = _option(
        128, "N", "Requests that are processed or wait; further ones are answered with 503.", "Scheduling", min=1
    )
    decoders: int = _option(2, "N", "Processes that decode recordings.", "Scheduling", min=1)
    batch_wait: float = _option(
        0.01, "SECONDS", "Time that a request waits for others to share its batch.", "Scheduling", min=0
    )
    batches: int | None = _option(
        None, "N", "Batches that run at once and share the threads; 2 on a CPU, 1 on a GPU.", "Scheduling", min=1
    )
    cors: str | None = _option(None, "ORIGINS", "Web pages that may use the service, separated by commas; * is any.")
    drain: float = _option(30.0, "SECONDS", "Time to finish open requests at shutdown.", "Scheduling", min=0)


@dataclass(frozen=True)
class LibraryConfig:
    """Options of indexing and searching sounds (`lamb index`, `lamb search`). [O]"""

    window: float = 10.0  # seconds; a longer recording is cut into segments where its sound changes
    group: int = 32  # recordings that are processed together and written at once
    compact: int = 50  # groups after which the files of the index are joined
    candidates: int = 200  # segments that each of the three searches contributes, to be scored by all
    words: float = 0.05  # added to the cosine of the segment whose caption fits best
    kinds: float = 0.3  # added to that of a segment where the named kinds of sound are certainly heard
    approximate: int = 20_000  # number of segments from which vectors and kinds have approximate indices
    probes: int = 16  # neighbourhoods of such an index that are searched


@dataclass(frozen=True)
class ListenConfig:
    """How events are found in a stream (`lamb listen`). [O]"""

    level: float = -60.0  # dBFS; a stretch with a lower peak is silence
    hop: float = 0.5  # seconds of new sound between two looks at it
    sure: float = 1.2  # seconds after a change until it is certain; more than the shortest segment (SHORTEST cells)
    longest: float = 8.0  # seconds after which a sound that continues is reported in parts
    held: float = 20.0  # seconds of sound that may wait for the model; more is dropped
    patience: float = 10.0  # seconds without sound after which a stream counts as lost
    first_wait: float = 1.0  # seconds before the first attempt to reconnect; doubled before each further one
    last_wait: float = 60.0  # most seconds before an attempt


@dataclass(frozen=True)
class ExplainConfig:
    """How the time of each word is found (`lamb explain`). [O]"""

    stretch: float = 1.0  # seconds that are scored alone
    hop: float = 0.5  # seconds between two stretches
    longest: float = 60.0  # seconds of a recording; the caption of a longer one comes from a part of it


@dataclass(frozen=True)
class SdhConfig:
    """Subtitles for the deaf and hard of hearing (`lamb caption --sdh`). [O]

    The values follow published guidelines: about 42 characters per line, 1 to 7 seconds, two frames between cues.
    """

    speech: bool = False  # whether speech is described too: "[man speaking]"
    characters: int = 42  # of a description, its brackets included
    shortest: float = 1.0  # least seconds for which a description is shown
    longest: float = 7.0  # most seconds for which it is shown
    pause: float = 0.083  # seconds between two cues


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as dicts, lists and scalars, as JSON and YAML have them."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """`data` (nested dicts) as the dataclass `cls`. Raises ConfigError for an unknown key or a wrong type."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where.rstrip('.') or cls.__name__}: expected keys and values, found {data!r}")
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(str(key), list(hints), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(hints)}"
            raise ConfigError(f"{where}{key}: unknown key; {hint}")
    for f in dataclasses.fields(typing.cast(Any, cls)):
        if f.name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}{f.name}: is missing")
    return cls(**{key: _typed(hints[key], value, f"{where}{key}") for key, value in data.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where + ".")
    if origin in (typing.Union, types.UnionType):
        for option in args:
            if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
                return _typed(option, value, where)  # the error names the key
            try:
                return _typed(option, value, where)
            except ConfigError:
                pass
    elif origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
    elif origin is tuple and isinstance(value, list | tuple):
        items = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(items) == len(value):
            return tuple(_typed(item, v, f"{where}[{i}]") for i, (item, v) in enumerate(zip(items, value, strict=True)))
    elif origin is Mapping and isinstance(value, Mapping):
        return {_typed(args[0], k, f"{where}.{k}"): _typed(args[1], v, f"{where}.{k}") for k, v in value.items()}
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is Any or (origin is None and isinstance(value, hint) and (hint is bool or not isinstance(value, bool))):
        return value  # YAML's true is a bool, which Python also takes for an int: not here
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"{where}: expected {name.replace('typing.', '')}, found {value!r}")


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A YAML recipe of `lamb train`, changed by `key.sub=value` overrides, whose values are YAML too."""
    return read(TrainConfig, path, overrides)


def read(kind: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """A YAML file as the dataclass `kind`, changed by `key.sub=value` overrides. Raises ConfigError."""
    path = Path(path)
    try:
        data = _yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; recipes are YAML files, see the folder recipes/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values, found {type(data).__name__}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"{override!r}: an override is written key=value, e.g. optim.steps=100")
        *parents, last = key.split(".")
        node = data
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {parent!r} holds a value, not keys")
        node[last] = _yaml(text, repr(override))
    try:
        return from_dict(kind, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _yaml(text: str, where: str) -> Any:
    """Read YAML in which 1e-3 is a number, which it is not in YAML 1.1. Raises ConfigError."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: cannot be read as YAML: {error}") from None
