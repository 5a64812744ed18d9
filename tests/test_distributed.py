"""Two processes learn what one learns: same gradients, same terms, same training run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from lamb.config import to_dict

TESTS = Path(__file__).parent
ALONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(command: list[str]) -> None:
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


def test_gradients(make_config, tmp_path):
    """The global divergence and InfoNCE see all four clips, the cross entropies all tokens."""
    (tmp_path / "config.json").write_text(json.dumps(to_dict(make_config())))
    script = [str(TESTS / "distributed_step.py"), str(tmp_path / "config.json")]
    run([*ALONE, *script, str(tmp_path / "one.pt")])
    run([*TWO, *script, str(tmp_path / "two.pt")])
    one, two = (torch.load(tmp_path / name) for name in ("one.pt", "two.pt"))
    torch.testing.assert_close(two["terms"], one["terms"], rtol=1e-5, atol=1e-6)
    assert one["gradients"].keys() == two["gradients"].keys()
    assert {"aligner.log_scale", "guide.beta", "adapter.out.weight"} <= one["gradients"].keys()
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: n + m)
