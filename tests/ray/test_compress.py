"""`dts compress --ray`: many fine-tunes as tasks of a real local Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dts.cli import many
from dts.cli.recipe import read_recipe
from dts.ray.cluster import Cluster
from tests.dts.cli.said import said
from tests.ray.conftest import processes, started

pytestmark = pytest.mark.ray
FILES = ("dts_config.json", "dts_model.safetensors")


@pytest.fixture
def place(models, tmp_path):
    """Links to the tiny models, and one that is damaged."""
    for name in ("base", "one", "two"):
        (tmp_path / name).symlink_to(models / name)
    (tmp_path / "cut.safetensors").write_bytes((models / "one" / "model.safetensors").read_bytes()[:-9])
    return tmp_path


def recipe(place: Path, *entries: str) -> Path:
    lines = ["base: base", "out: adapters", "budget: 40%", "finetunes:", *(f"  - {entry}" for entry in entries)]
    (place / "run.yaml").write_text("\n".join(lines))
    return place / "run.yaml"


def rows_of(done) -> dict[str, dict]:
    assert done.stdout, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)["finetunes"]}


def states(done) -> dict[str, str]:
    return {name: row["state"] for name, row in rows_of(done).items()}


def equal(one: Path, other: Path) -> bool:
    return all((one / file).read_bytes() == (other / file).read_bytes() for file in FILES)


def test_interrupted_it_ends_what_it_started_and_goes_on(dts, place):
    """With a Ray of its own."""
    file = recipe(place, "one", "two")
    words = [sys.executable, "-m", "dts", "compress", "--config", str(file), "--ray"]
    home = {"HOME": str(place)}  # by which its processes are known
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | home)
    until = time.monotonic() + 120
    while not any("raylet" in line for line in processes(place).values()):
        assert run.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode != 0
    until = time.monotonic() + 30
    while left := processes(place):
        assert time.monotonic() < until, left
        time.sleep(0.2)
    again = dts("compress", "--config", file, "--json")
    assert again.exit_code == 0 and set(states(again).values()) <= {"written", "there already"}


def test_by_words_by_file_and_again(dts, place, joined):
    """Bytes of what is made without Ray; what failed is told with its reason, and stops nothing."""
    words = ("compress", "base", "one", "two", "cut.safetensors", "none", "-o", "adapters", "-s", "40%")
    done = dts(*words, "--ray", "--json")
    assert states(done) == {"one": "written", "two": "written", "cut": "failed", "none": "failed"}
    rows = rows_of(done)
    assert done.exit_code == 1 and "none" in rows["none"]["reason"] and "traceback" not in rows["cut"]
    assert dts("compress", "base", "one", "two", "-o", "alone", "-s", "40%").exit_code == 0
    for name in ("one", "two"):
        assert equal(place / "adapters" / name, place / "alone" / name)
    before = (place / "adapters" / "one" / FILES[1]).stat().st_mtime_ns
    # a file that says the same goes on, with Ray and without
    file = recipe(place, "one", "two", "cut.safetensors")
    for more in (("--ray-address", joined, "--task-cpus", "0.5", "--task-memory", "100MB"), ()):
        done = dts("compress", "--config", file, "--json", *more)
        assert list(states(done).values()) == ["there already", "there already", "failed"]
    assert (place / "adapters" / "one" / FILES[1]).stat().st_mtime_ns == before
    shown = dts("compress", "--config", file, "--ray")
    assert shown.exit_code == 1 and "cut failed:" in shown.stdout and "1 of 3 failed" in shown.stdout
    assert "Traceback" not in shown.stdout + shown.stderr
    # of other options it is not taken for what it is not
    other = dts("compress", "base", "one", "two", "-o", "adapters", "-s", "50%", "--ray", "--json")
    assert set(states(other).values()) == {"failed"} and "--overwrite" in other.stdout
    # one alone is --out itself, as without Ray
    assert states(dts("compress", "base", "one", "-o", "single", "-s", "40%", "--ray", "--json")) == {"one": "written"}
    assert equal(place / "single", place / "alone" / "one")


def test_it_says_what_it_would_write(dts, place, joined):
    done = dts("compress", "base", "one", "two", "-o", "adapters", "-s", "40%", "--ray", "--dry-run", "--json")
    assert states(done) == {"one": "predicted", "two": "predicted"} and not (place / "adapters").exists()


def test_a_worker_that_dies_is_tried_again_and_leaves_nothing_half(dts, place, joined, monkeypatch):
    """SIGKILL in the middle of the first try: the second ends.  One that always dies is told."""
    made_of = many._made
    monkeypatch.setattr(many, "_made", _dies)
    file = recipe(place, "one", "{path: one, name: always}", "two")
    heard, warned = [], []
    rows = many.run(
        read_recipe(file), progress=lambda *news: heard.append(news), say=warned.append, cluster=Cluster(cpus=1)
    )
    assert [row["state"] for row in rows] == ["written", "failed", "written"], rows
    assert "WorkerCrashedError" in rows[1]["reason"] and "\n" not in rows[1]["reason"]
    assert heard[-1][0] == heard[-1][1] == 3000 and warned.count("two: is warned of") == 1
    assert len((place / "tries-one").read_text().split()) == 2
    assert len((place / "tries-always").read_text().split()) == 1 + 3
    made = sorted(one.name for one in (place / "adapters").iterdir() if (one / FILES[0]).exists())
    assert made == ["one", "two"]
    assert dts("compress", "base", "one", "-o", "alone", "-s", "40%").exit_code == 0
    assert equal(place / "adapters" / "one", place / "alone")
    # what was begun is never taken for a whole one, and the next run makes it
    monkeypatch.setattr(many, "_made", made_of)
    assert [row["state"] for row in many.run(read_recipe(file))] == ["there already", "written", "there already"]


def _dies(job, base, how, told, say):
    """In the worker."""
    tries = job.folder.parents[1] / f"tries-{job.name}"
    with tries.open("a") as file:
        file.write("1 ")
    once = len(tries.read_text().split()) == 1

    def heard(share):
        if share > 0.3 and (job.name == "always" or (job.name == "one" and once)):
            os.kill(os.getpid(), signal.SIGKILL)
        told(share)

    if job.name == "two":
        say("two: is warned of")
    return many._made(job, base, how, heard, say)


@pytest.mark.parametrize(
    "words, text",
    [
        (("--ray", "--task-cpus", "1.5"), "a part of a core, or whole ones, not 1.5"),
        (("--ray", "--task-cpus", "0"), "not 0"),
        (("--ray", "--task-memory", "much"), "much"),
        (("--ray", "--merge", "average", "--kind", "difference"), "--ray does not go with --merge"),
        (("--ray", "--tensors"), "--tensors"),
        (("--task-cpus", "2"), "--task-cpus and --task-memory are of tasks of --ray"),
        (("--ray", "-m", "papper"), "method must be one of"),
    ],
)
def test_bad_words(dts, place, words, text):
    done = dts("compress", "base", "one", "two", "-o", "adapters", "-s", "40%", *words)
    assert done.exit_code == 2 and text in said(done) and not (place / "adapters").exists()


def test_jobs_and_addresses_of_nobody(dts, place):
    assert "--jobs is of processes" in said(dts("compress", "--config", recipe(place, "one"), "--ray", "--jobs", "2"))
    words = [sys.executable, "-m", "dts", "compress", "base", "one", "-o", "x", "--ray-address", "127.0.0.1:1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=place)
    assert done.returncode == 2 and "no Ray answers at 127.0.0.1:1" in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr and not (place / "x").exists()


ABSENT = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("dts", "dts_kernels"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
"""


def test_a_machine_without_the_package_is_named(place):
    """Of each fine-tune, in a line; nothing is written."""
    (place / "without").mkdir()
    (place / "without" / "sitecustomize.py").write_text(ABSENT)
    with started("without", PYTHONPATH=str(place / "without")) as address:
        words = ["compress", "base", "one", "-o", "adapters", "-s", "40%", "--ray-address", address, "--json"]
        words = [sys.executable, "-m", "dts", *words]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240, cwd=place)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (row,) = json.loads(done.stdout)["finetunes"]
    assert row["state"] == "failed" and row["reason"].startswith("the machine at "), row
    assert "has no dts" in row["reason"] and "dts-merge is to be installed on every machine" in row["reason"]
    assert not any((place / "adapters").glob("*/dts_config.json"))


def test_more_than_a_machine_has(place, joined):
    """Of a Ray of our own it is an error; one that runs may grow, so that is said and waited for."""
    import ray

    from dts.ray.tasks import _too_small

    assert "no machine has the 512 cores" in _too_small(ray, Cluster(cpus=512))
    assert "900000000000000 bytes" in _too_small(ray, Cluster(memory=9 * 10**14))
    assert _too_small(ray, Cluster()) == ""
