"""What the guide and the aligner meet in the text space of a pretrained language model: two tables of docs/method.md.

    python benchmarks/text_space.py [--llm SOURCE] [--captions FILE] [--steps N]

The first ranks the tokens of a caption among all tokens by the Token Guide's score, with the caption's own embeddings
in place of z, at several lengths of z. The second trains the adapter and the aligner alone, on random encoder tokens,
and tells how close z_a comes to the text by each kernel, as L2 distance and cosine of the pooled raw vectors.

SOURCE is a hub id, a folder or a GGUF file (`make smollm`); FILE is AudioCaps' table of validation captions.
"""

import argparse
import csv
from pathlib import Path

import torch
from torch.nn import functional as F

from lamb.config import AdapterConfig, AlignerConfig, LLMConfig
from lamb.model.adapter import TwoStreamAdapter
from lamb.model.aligner import CrossModalAligner, gap
from lamb.model.language_model import LanguageModel
from lamb.model.padding import pad

CAPTIONS = Path(__file__).parents[2] / "shared" / "captions" / "audiocaps_val.csv"
KERNELS = {
    "unit vectors, s = 1": {},
    "raw vectors, s = 1": {"normalise": False},
    "raw vectors, s = 4": {"normalise": False, "sigma": 4.0},
    "raw vectors, median": {"normalise": False, "sigma": "median"},
}


def ranks(table: torch.Tensor, ids: list[torch.Tensor]) -> None:
    """Median rank (0: the best) of the tokens of captions, by the mean over the caption's embeddings in place of z."""
    z = torch.stack([table[own].mean(0) for own in ids])  # (B, D)
    unit = F.normalize(table, dim=1)
    found = {f"squared L2, z {s} times as long": 2 * s * z @ table.T - table.square().sum(1) for s in (1, 2, 5, 10)}
    found["cosine"] = torch.stack([unit[own].mean(0) for own in ids]) @ unit.T  # (B, V)
    for name, scores in found.items():
        better = [(row[None] > row[own][:, None]).sum(1) for row, own in zip(scores, ids, strict=True)]
        print(f"median rank of {len(table):,}, {name:32s} {torch.cat(better).float().median():6.0f}", flush=True)


def kernels(table: torch.Tensor, ids: list[torch.Tensor], steps: int) -> None:
    """L2, cosine and the length of the pooled z_a after some steps with each kernel; seed 0, batches of 32."""
    z_t, mask = pad([table[own] for own in ids])
    h_a = torch.randn(len(ids), 12, 64, generator=torch.Generator().manual_seed(0))
    there = torch.ones(h_a.shape[:2], dtype=torch.bool)
    for name, options in KERNELS.items():
        torch.manual_seed(0)
        adapter = TwoStreamAdapter(AdapterConfig(fusion_queries=16, head_dim=32), 64, table.shape[1])
        aligner = CrossModalAligner(AlignerConfig(**options))
        optimiser = torch.optim.AdamW([*adapter.parameters(), *aligner.parameters()], lr=1e-3)
        for _ in range(steps):
            some = torch.randperm(len(ids))[:32]
            terms = aligner(*adapter(h_a[some], there[some]), z_t[some], mask[some])
            optimiser.zero_grad()
            sum(aligner.weights[key] * value for key, value in terms.items()).backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimiser.step()
        with torch.no_grad():
            z_a, z_mask = adapter(h_a, there)
            found, length = gap(z_a, z_mask, z_t, mask), z_a.mean(1).norm(dim=1).mean()
        print(f"{name:20s} L2 {found['l2']:5.2f}  cosine {found['cosine']:.3f}  length {length:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--captions", type=Path, default=CAPTIONS)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    llm = LanguageModel.from_pretrained(LLMConfig(source=args.llm, train="frozen"))
    table = llm.embedding_matrix.detach().float()  # (V, D_llm)
    with args.captions.open(encoding="utf-8") as file:
        first: dict[str, str] = {}  # caption of each clip
        for row in csv.DictReader(file):
            first.setdefault(row["youtube_id"], row["caption"])
    captions = list(first.values())[:256]
    ids = [torch.tensor(llm.tokenizer(f" {text}", add_special_tokens=False).input_ids) for text in captions]
    with torch.no_grad():
        ranks(table, ids[:96])
    kernels(table, ids, args.steps)


if __name__ == "__main__":
    main()
