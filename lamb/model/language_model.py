"""The language model: any causal LM of `transformers`, its tokenizer, prompt and LoRA.

The paper uses LLaMA-2 7B with LoRA; rank, targets and prompt come from the authors' earlier captioner, the rest is our
choice. Letters: B batch, L caption tokens, V vocabulary, D_llm width.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ConfigError, LLMConfig
from ..errors import reason
from . import gguf
from .padding import pad

AUDIO = "<audio>"  # where the audio tokens stand in a prompt


class LanguageModel(nn.Module):
    """A causal LM with its tokenizer; `config` says how it is prompted and trained."""

    def __init__(self, model: Any, tokenizer: Any, config: LLMConfig):
        from transformers import GenerationConfig

        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"llm {config.source}: its tokenizer has no end-of-sequence token, so no caption can end")
        prompt = config.prompt.replace("{instruction}", config.instruction)
        if prompt.count(AUDIO) != 1:
            raise ConfigError(f"llm.prompt: {prompt!r} must hold {AUDIO} exactly once")
        before, after = prompt.split(AUDIO)
        # special tokens (LLaMA's <s>) only where the sequence begins
        self.before: list[int] = _without(tokenizer(before).input_ids, tokenizer.eos_token_id)
        self.after: list[int] = tokenizer(after, add_special_tokens=False).input_ids
        # generate() would take from the model's own what DecodeConfig leaves open, such as a repetition penalty
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=eos)
        if config.train == "lora":
            _add_lora(model, config)
        elif config.train == "frozen":
            model.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, config: LLMConfig, device: str | torch.device = "cpu") -> "LanguageModel":
        """The LM and tokenizer of `config.source`: a hub id, a folder or a GGUF file. ConfigError if there are none."""
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # it would stand among the captions
        if config.source is None:
            raise ConfigError("llm.source: give a hub id or a folder, or a GGUF file, with a causal language model")
        place = gguf.folder_of(config.source) if config.source.endswith(".gguf") else config.source
        try:
            # never code that comes with a model, nor a question whether to run it
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
            # a checkpoint's own dtype would be taken otherwise: bf16 is very slow on most CPUs
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place,
                dtype=dtype(config.dtype, device),
                trust_remote_code=False,
                use_safetensors=True,  # pytorch_model.bin is a pickle
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
            raise ConfigError(
                f"llm {config.source}: cannot be loaded ({reason(error)}); give the id of a causal LM on "
                "the Hugging Face hub that can be reached from here, or a folder saved with save_pretrained"
            ) from None
        model, report = loaded
        if report["missing_keys"]:  # transformers fills them with random numbers
            missing = sorted(report["missing_keys"])
            raise ConfigError(
                f"llm {config.source}: {len(missing)} weights are missing, such as {missing[0]}; give a complete "
                "checkpoint of a causal LM"
            )
        return cls(model, tokenizer, config)

    @classmethod
    def from_folder(cls, folder: str | Path, config: LLMConfig) -> "LanguageModel":
        """The LM whose configuration and tokenizer lie in `folder`, with random weights for a checkpoint to fill."""
        from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

        architecture = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(architecture, dtype=torch.float32, trust_remote_code=False)
        return cls(model, PreTrainedTokenizerFast.from_pretrained(folder), config)

    @property
    def embedding_matrix(self) -> Tensor:
        """The input embeddings of the vocabulary (V, D_llm)."""
        return self.model.get_input_embeddings().weight

    @property
    def dim(self) -> int:
        return self.embedding_matrix.shape[1]

    @torch.no_grad()
    def identity(self) -> dict[str, Any]:
        """What tells this LM from others: its kind, vocabulary, width, and a check sum of its input embeddings.

        The check sum is that of the matrix in bfloat16, so that it is the same on a GPU and on a CPU.
        """
        matrix = self.embedding_matrix.detach().to(torch.bfloat16).cpu().contiguous()
        digest = hashlib.sha256(matrix.view(torch.int16).numpy().tobytes()).hexdigest()[:16]
        kind = self.model.config.model_type
        return {"kind": kind, "vocabulary": matrix.shape[0], "width": matrix.shape[1], "embeddings": digest}

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (...) -> input embeddings (..., D_llm)."""
        return self.model.get_input_embeddings()(ids)

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> ids (B, L) and mask (B, L), without special tokens, on the model's device."""
        rows = self.tokenizer([self.config.lead + text for text in captions], add_special_tokens=False).input_ids
        ids, mask = pad([torch.tensor(row, dtype=torch.long) for row in rows], self.tokenizer.eos_token_id)
        return ids.to(self.embedding_matrix.device), mask.to(self.embedding_matrix.device)

    def prefix(self, z_a: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Audio tokens (B, N, D_llm), mask (B, N) -> prompt embeddings (B, P, D_llm), mask (B, P), padded on the left.

        Captions can follow directly, at the same position of every row.
        """
        size = len(z_a)
        ids = torch.tensor([*self.before, *self.after], dtype=torch.long, device=z_a.device)
        before, after = self.embed(ids).split([len(self.before), len(self.after)])
        parts = [before.expand(size, -1, -1), z_a.to(before.dtype), after.expand(size, -1, -1)]
        embeddings = torch.cat(parts, 1)  # (B, P, D_llm)
        valid = torch.cat([mask.new_ones(size, len(before)), mask, mask.new_ones(size, len(after))], 1)  # (B, P)
        if not mask.all():  # padding first, the rest in its order
            order = valid.to(torch.int8).argsort(dim=1, stable=True)  # (B, P)
            embeddings = embeddings.gather(1, order[..., None].expand_as(embeddings))
            valid = valid.gather(1, order)
        return embeddings, valid

    def logits(self, prefix: Tensor, prefix_mask: Tensor, ids: Tensor) -> Tensor:
        """Prompt (B, P, D_llm), its mask (B, P), caption ids (B, L) -> logits (B, L + 1, V), of each token and the end.

        What lies behind a caption's own tokens does not matter to them: attention is causal.
        """
        embeddings = torch.cat([prefix, self.embed(ids)], 1)  # (B, P + L, D_llm)
        mask = torch.cat([prefix_mask, torch.ones_like(ids, dtype=torch.bool)], 1)
        positions = {} if prefix_mask.all() else {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
        out = self.model(
            inputs_embeds=embeddings,
            attention_mask=mask.long(),
            use_cache=False,
            logits_to_keep=ids.shape[1] + 1,
            **positions,
        )
        return out.logits


def dtype(name: str, device: str | torch.device) -> torch.dtype:
    """The torch dtype of a config's name; "auto" is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return getattr(torch, name)


def _add_lora(model: Any, config: LLMConfig) -> None:
    """LoRA on q and v (or on `lora_targets`), everything else frozen."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    known: Any = KNOWN.get(model.config.model_type, ["q_proj", "v_proj"])  # PEFT's q and v of the model's kind
    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora.dropout,
        target_modules=list(config.lora_targets) if config.lora_targets else known,
        bias="none",
    )
    model.requires_grad_(False)
    try:
        inject_adapter_in_model(lora, model)
    except ValueError as error:
        raise ConfigError(
            f"llm.lora_targets: LoRA finds nothing to adapt in {type(model).__name__} ({reason(error)}); "
            "name its query and value projections there"
        ) from None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # in bf16, like the base, most steps of 5e-5 would round to nothing


def merge_lora(model: nn.Module) -> None:
    """Fold every LoRA layer into its weight, in place: the same outputs, faster."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                child.merge()  # type: ignore[attr-defined]
                setattr(parent, name, child.get_base_layer())


def _without(ids: list[int], eos: int) -> list[int]:
    """Some tokenizers end every text with EOS: not in the middle of a prompt."""
    return ids[:-1] if ids and ids[-1] == eos else ids
