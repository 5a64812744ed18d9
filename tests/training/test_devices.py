"""Everything a step and a caption need lies on the model's device; a pretended one, see pretended_gpu.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

from lamb.config import to_dict

TESTS = Path(__file__).parents[1]
CED = {"name": "ced", "source": None, "options": {"dim": 64, "heads": 1, "depth": 1}, "train": "lora"}


def test_tensors_meet_on_one_device(make_config, tmp_path):
    configs = [
        make_config(guide={"reduce": "min"}),
        make_config(encoder=CED, llm={"train": "lora"}, aligner={"sigma": "median"}),
        make_config(encoder=CED, llm={"train": "frozen"}, adapter={"kind": "qformer"}),
    ]
    paths = [tmp_path / f"{k}.json" for k in range(len(configs))]
    for path, config in zip(paths, configs, strict=True):
        path.write_text(json.dumps(to_dict(config)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, str(TESTS / "pretended_gpu.py"), *map(str, paths)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
