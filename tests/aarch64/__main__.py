"""The wheel for aarch64 in a bare Debian that qemu runs: `make test-aarch64`.

    python -m tests.aarch64 WHEEL

In this order: the C library's self-test on processors without and with dot products; `dts doctor`; a small model
compressed, verified and run from Python and by its commands; the tests of the kernels.  Exits non-zero where a tool is
missing or a step ran no test: a check that did not run must not look like one that passed.
"""

import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.aarch64.root import Root, run
from tests.dts_kernels.cpu.test_build import self_test

CHECKOUT = Path(__file__).parents[2]
SELF_TESTED = {
    "cortex-a53": ("neon",),
    "cortex-a72": ("neon",),
    "cortex-a76": ("neondot", "neon"),
    "max": ("neondot", "neon"),
}
TESTS = (
    "tests/dts_kernels/cpu/test_native.py",
    "tests/dts_kernels/cpu/test_native_samples.py",
    "tests/dts_kernels/test_samples.py::test_products_are_those_of_dense_matrices",
    "tests/dts_kernels/test_samples.py::test_rows_and_the_whole",
)
# what takes minutes under emulation: what looks at no kernel's numbers, portable C, which the self-test has run, and
# shares of threads, which are of no one variant
SLOW = "test_gradients or test_the_op_is_well_behaved or portable or test_threads_change_nothing and not neondot"
# in one process, as the import of PyTorch takes longest
SMALL = """
import sys, torch, dts
from pathlib import Path
from safetensors.torch import save_file
from dts.cli import app
from dts_kernels import dispatch
torch.manual_seed(0)
base = {f"layer.{i}.weight": torch.randn(96, 80) for i in range(2)} | {"norm.weight": torch.ones(80)}
moved = lambda t: 0.02 * torch.randn(t.shape[0], 3) @ torch.randn(3, t.shape[1]) if t.dim() == 2 else 0.01
for name, tensors in (("base", base), ("tuned", {n: t + moved(t) for n, t in base.items()})):
    folder = Path(name)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
for words in ("compress base tuned -o adapter --budget 5%", "verify adapter base tuned"):
    sys.argv = ["dts", *words.split()]
    try:
        app.main()
    except SystemExit as done:
        assert not done.code, words
assert str(dts.__file__).startswith(sys.path[1]), dts.__file__
adapter, base = dts.Adapter.load("adapter"), dts.open_checkpoint("base")
dispatch.ran.clear()
worst = 0.0
for name in ("layer.0.weight", "layer.1.weight"):
    plain = torch.nn.Linear(80, 96, bias=False)
    plain.weight.data = base.load(name)
    layer = dts.DTSLinear.from_linear(plain.requires_grad_(False))
    factors = adapter.entries[name].factors
    layer.load_task("a", factors)
    layer.set_task("a")
    x = torch.randn(5, 80)
    wanted = x.double() @ (plain.weight.double() + factors.reconstruct().double()).T
    worst = max(worst, ((layer(x) - wanted).norm() / wanted.norm()).item())
assert worst < 1e-4, worst
assert {path for _, path in dispatch.ran} == {"native"}, dispatch.ran
print(worst)
"""


def main() -> int:
    if len(sys.argv) != 2 or not sys.argv[1].endswith("aarch64.whl"):
        print(__doc__, file=sys.stderr)
        return 2
    begun = time.monotonic()
    say = lambda what: print(f"{time.monotonic() - begun:5.0f} s  {what}", flush=True)  # noqa: E731
    try:
        with tempfile.TemporaryDirectory() as place:
            self_tests(Path(place), say)
            root = Root.made(Path(place, "root"), Path(sys.argv[1]).resolve())
            say("Debian for aarch64, with the wheel installed")
            small_model(root, Path(place), say)
            kernels(root, Path(place), say)
    except (RuntimeError, OSError, AssertionError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def self_tests(place: Path, say) -> None:
    (place / "c").mkdir()
    program = self_test(place / "c", ["aarch64-linux-gnu-gcc"], "aarch64", ["-static"])
    for cpu, variants in SELF_TESTED.items():
        said = run(["qemu-aarch64-static", "-cpu", cpu, str(program)])
        ran = tuple(re.findall(r"^(\w+) done", said, re.MULTILINE))
        assert ran == (*variants, "portable"), f"on {cpu} the self-test ran {ran}"
    say(f"the C library's self-test on {', '.join(SELF_TESTED)}")


def small_model(root: Root, place: Path, say) -> None:
    report = json.loads(run(root.command(["-m", "dts", "doctor", "--json"]), cwd=place))
    found = report["kernels"]["cpu"]
    assert found["compiled"] and found["variants"] == ["neondot", "neon", "portable"], found
    say(f"dts doctor: {', '.join(found['variants'])}")
    worst = run(root.command(["-c", SMALL]), cwd=place).split()[-1]
    say(f"a small model compressed, verified and run: products within {float(worst):.1e} of the dense ones")


def kernels(root: Root, place: Path, say) -> None:
    """Away from the checkout, whose package would be imported and not the wheel's."""
    away = place / "away"
    shutil.copytree(CHECKOUT / "tests", away / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", away)
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "-k", f"not ({SLOW})", *TESTS]
    said = run(root.command(words), cwd=away, timeout=2400)
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) > 100, f"no test of the kernels ran:\n{said[-2000:]}"
    say(f"tests of the kernels: {said.strip().splitlines()[-1]}")


if __name__ == "__main__":
    sys.exit(main())
