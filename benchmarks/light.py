"""Captions with ONNX Runtime and with PyTorch, side by side: start-up, throughput, memory, and a peer.

    python benchmarks/light.py [--model NAME] [--runs N] [--clips N] [--hours H] [--without-peer]

Every row is measured for both engines in turn, in fresh processes that run the real command, so that both meet the same
machine; the number is the median of the runs. Processor time (user and system, of the command and the processes that it
starts) is shown beside the wall clock: on a machine that does other work it is the one to compare. The load average at
the beginning and at the end is printed.

The peer is a captioner of the size of whisper-tiny with random weights (`transformers`, 4 beams, clips of 5 s, log mels
of 30 s as Whisper wants them, as many tokens as the captions of the bundled model have).
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from captioner import LAMB, ROOT, make_clips

ENGINES = ("onnx", "torch")
TOKENS = 12  # of a caption of the bundled model, on average
PEER = """
import sys, time
import numpy as np, torch
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.audio_utils import mel_filter_bank
torch.manual_seed(0)
config = WhisperConfig(d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
                       decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536)
model = WhisperForConditionalGeneration(config).eval()
mels = torch.from_numpy(mel_filter_bank(201, 80, 0.0, 8000.0, 16000, "slaney", "slaney")).float()
window, count = torch.hann_window(400), int(sys.argv[1])
began, worked = time.perf_counter(), time.process_time()
with torch.inference_mode():
    for _ in range(0, count, 8):
        x = torch.nn.functional.pad(0.1 * torch.randn(8, 80000), (0, 400000))
        power = torch.stft(x, 400, 160, window=window, return_complex=True)[..., :-1].abs().square()
        features = (mels.T @ power).clamp_min(1e-10).log10()
        model.generate(features, num_beams=4, max_new_tokens=int(sys.argv[2]), min_new_tokens=int(sys.argv[2]),
                       do_sample=False)
print(time.perf_counter() - began, time.process_time() - worked)
"""


def run(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak memory (MB) of a command with the processes that it starts."""
    began = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)}: {said}")
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, worked, after.ru_maxrss / 1024  # the highest of all commands so far


def median(rows: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    wall, worked, memory = (statistics.median(column) for column in zip(*rows, strict=True))
    return wall, worked, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = ROOT.parent / "shared" / "sounds" / "audio"
    parser.add_argument("--sounds", type=Path, default=shared if shared.exists() else ROOT / "samples")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--hours", type=float, default=1.0, help="length of the recording for --timeline; 0: none")
    parser.add_argument("--without-peer", action="store_true")
    args = parser.parse_args()
    print(f"cores {os.cpu_count()}, load before {os.getloadavg()[0]:.1f}, medians of {args.runs} runs")
    print(f"{'':34s}{'wall':>9s}{'processor':>12s}")

    def row(name: str, wall: float, worked: float, more: str = "") -> None:
        print(f"{name:34s}{wall:7.2f} s{worked:10.2f} s  {more}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        clips, long = Path(temporary, "clips"), Path(temporary, "long.wav")
        clips.mkdir()
        total = make_clips(args.sounds, clips, args.clips)
        wall, worked, _ = median([run([*LAMB, "--help"]) for _ in range(args.runs)])
        row("lamb --help", wall, worked)
        caption = [*LAMB, "caption", "--model", args.model, "--quiet"]
        commands = {
            "caption one.wav": ([*caption, str(clips / "000.wav")], args.runs),
            f"{args.clips} clips of 5 s": ([*caption, str(clips)], max(1, args.runs // 2)),
        }
        if args.hours:
            day(clips, long, args.hours)
            commands[f"{args.hours:g} h --timeline"] = ([*caption, "--timeline", str(long)], 1)
        spent = {}
        for name, (command, runs) in commands.items():
            rows: dict[str, list[tuple[float, float, float]]] = {engine: [] for engine in ENGINES}
            for _ in range(runs):  # in turn
                for engine in ENGINES:
                    rows[engine].append(run([*command, "--engine", engine]))
            for engine in ENGINES:
                wall, worked, _ = median(rows[engine])
                length = {0: 5.0, 1: total}.get(list(commands).index(name), args.hours * 3600)
                row(f"{name}, {engine}", wall, worked, f"{length / wall:6.1f} x real time")
                spent[name, engine] = worked
        for engine in ENGINES:
            memory = peak([*caption, str(clips), "--engine", engine])
            print(f"peak memory, {args.clips} clips, {engine:6s} {memory:7.0f} MB")
        if not args.without_peer:
            count = 32
            found = subprocess.run(
                [sys.executable, "-c", PEER, str(count), str(TOKENS)], capture_output=True, text=True, check=True
            )
            wall, worked = map(float, found.stdout.split())
            row(f"whisper-tiny, {count} clips", wall, worked, f"{count / worked:.2f} clips a processor second")
            for engine in ENGINES:
                one, many = (spent[name, engine] for name in list(commands)[:2])
                rate = (args.clips - 1) / (many - one)  # without start-up, as for the peer
                print(f"{engine}: {rate:.1f} clips a processor second, {rate * worked / count:.1f} times the peer")
    print(f"load after {os.getloadavg()[0]:.1f}")


def day(clips: Path, to: Path, hours: float) -> None:
    """A recording of the clips, one after the other, again and again."""
    files = sorted(clips.iterdir())
    rate = soundfile.info(files[0]).samplerate
    with soundfile.SoundFile(to, "w", rate, 1) as out:
        left, k = hours * 3600 * rate, 0
        while left > 0:
            x, own = soundfile.read(files[k % len(files)], dtype="float32")
            out.write(
                np.interp(np.arange(0, len(x) / own, 1 / rate), np.arange(len(x)) / own, x if x.ndim == 1 else x[:, 0])
            )
            left, k = left - len(x) * rate / own, k + 1


def peak(command: list[str]) -> float:
    """Peak memory (MB) of the captioning process alone."""
    code = (
        "import resource, sys; from lamb.cli.app import main\n"
        "try:\n    main()\nfinally:\n    "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *command[len(LAMB) :]], capture_output=True, text=True, check=True
    )
    return float(found.stderr.split()[-1])


if __name__ == "__main__":
    main()
