"""A training step of the paper's size with random weights: LLaMA-2 7B and CED-base with LoRA, batch 32, bf16 on a GPU.

    python benchmarks/gpu_step.py                   the paper's size, on a GPU of some 80 GB
    python benchmarks/gpu_step.py --checkpointing   the same with gradient checkpointing
    python benchmarks/gpu_step.py --tiny            a tiny one, in float32, to try the script on a CPU

Prints seconds a step (median), clips a second, peak memory, and what share of the machine's own rate of large matrix
products (measured here, in the same precision) the step's arithmetic (counted by PyTorch) comes to; then the same step
with the plain cross entropy alone, in turn with it, so that both see the same machine.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lamb.config import AlignerConfig, EncoderConfig, GuideConfig, LambConfig, LLMConfig
from lamb.model.encoders import build_encoder
from lamb.model.lamb import LambModel
from lamb.model.language_model import LanguageModel
from lamb.model.losses import loss_terms
from lamb.training.language_model_stage import train_tokenizer

CED_SIZES = {
    "tiny": {"dim": 192, "heads": 3},
    "mini": {"dim": 256, "heads": 4},
    "small": {"dim": 384, "heads": 6},
    "base": {"dim": 768, "heads": 12},
}
CAPTION = "A dog barks while rain falls on a surface, then a siren wails in the distance and a man speaks."


def random_model(args: argparse.Namespace, device: torch.device) -> LambModel:
    """LAMB with an LLM of the size asked for, what is frozen in bf16 on a GPU, what learns in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    lm = LLMConfig()
    # its words become tokens of their own, so that prompt and caption are about as long as in LLaMA's tokens
    tokenizer = train_tokenizer([CAPTION, lm.prompt.replace("{instruction}", lm.instruction)] * 50, args.vocabulary)
    architecture = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        intermediate_size=args.mlp,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        base = LlamaForCausalLM._from_config(architecture, dtype=dtype)
    config = LambConfig(encoder=EncoderConfig(options=CED_SIZES[args.encoder]), llm=lm)
    model = LambModel(config, build_encoder(config.encoder), LanguageModel(base, tokenizer, config.llm))
    model.to(device).initialise()
    if args.checkpointing:
        model.llm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Floating point operations a second of a product of two (size, size) matrices: the best of ten."""
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    times = [seconds(lambda: a @ b, device) for _ in range(12)]
    return 2 * size**3 / min(times[2:])


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time of `run`, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def step_of(model: LambModel, args: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """A function that does one training step on the same batch of noise."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5)
    samples = round(args.seconds * model.encoder.sample_rate)
    waveform = torch.randn(args.batch, samples, device=device)
    mask = torch.ones(args.batch, samples, dtype=torch.bool, device=device)
    ids, ids_mask = model.llm.tokenize([CAPTION] * args.batch)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            output = model(waveform, mask, ids, ids_mask)
        loss_terms(model, output)["loss"].backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model in place of the paper's")
    sizes = {"width": 4096, "layers": 32, "heads": 32, "mlp": 11008, "vocabulary": 32000, "batch": 32, "steps": 20}
    tiny = {"width": 64, "layers": 2, "heads": 2, "mlp": 128, "vocabulary": 400, "batch": 2, "steps": 4}
    for name in sizes:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--encoder", choices=CED_SIZES, default="base")
    parser.add_argument("--seconds", type=float, default=10.0, help="of every clip")
    parser.add_argument("--checkpointing", action="store_true", help="as with optim.checkpointing=true")
    args = parser.parse_args()
    for name, size in (tiny if args.tiny else sizes).items():
        setattr(args, name, size if getattr(args, name) is None else getattr(args, name))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"

    torch.manual_seed(0)
    whole = random_model(args, device)
    config = dataclasses.replace(whole.config, aligner=AlignerConfig(enabled=False), guide=GuideConfig(enabled=False))
    plain = LambModel(config, whole.encoder, whole.llm).to(device).train()
    steps = {"whole": step_of(whole, args, device), "plain": step_of(plain, args, device)}
    count = sum(p.numel() for p in whole.parameters())
    print(f"{name}, torch {torch.__version__}: {count / 1e9:.3f} billion parameters, batch {args.batch}")

    with FlopCounterMode(display=False) as counter:
        steps["whole"]()
    operations = counter.get_total_flops()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times: dict[str, list[float]] = {"whole": [], "plain": []}
    for _ in range(args.steps):
        for kind, step in steps.items():
            times[kind].append(seconds(step, device))
    rate = matmul_rate(
        device, torch.bfloat16 if device.type == "cuda" else torch.float32, 8192 if device.type == "cuda" else 1024
    )
    usual, without = (statistics.median(times[kind][2:]) for kind in ("whole", "plain"))
    print(f"step                     {usual:.3f} s, {args.batch / usual:.1f} clips a second")
    if device.type == "cuda":
        print(f"peak memory              {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB")
    print(f"arithmetic of a step     {operations / 1e12:.3f} Tflop, {operations / usual / 1e12:.2f} Tflop/s")
    print(f"of large matmuls' rate   {100 * operations / usual / rate:.0f} % of {rate / 1e12:.2f} Tflop/s")
    print(f"plain cross entropy alone  {without:.3f} s; the method takes {100 * (usual / without - 1):.1f} % more")


if __name__ == "__main__":
    main()
