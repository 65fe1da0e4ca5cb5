"""What a user installs: names, imports, wheel and sdist."""

import ast
import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dts
from dts_kernels.cpu.build import compiler, library_name

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("transformers", "triton", "sentence_transformers", "matplotlib", "typer", "rich", "sklearn")


def python(code: str, **options) -> str:
    """Output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_there():
    assert all(getattr(dts, name) is not None for name in dts.__all__)
    assert set(dts.__all__) <= set(dir(dts))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dts.no_such_name


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "dts" / "__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    names = [(node.module, alias.name) for node in block.body for alias in node.names]
    found = {name: getattr(importlib.import_module(module), name) for module, name in names}
    assert found == {name: getattr(dts, name) for name in dts.__all__}


def test_merge_is_a_function_and_a_package():
    code = "import dts, dts.merge.registry; assert callable(dts.merge) and dts.merge.METHODS; print('fine')"
    assert python(code, cwd=ROOT) == "fine\n"


@pytest.mark.parametrize("touch", ["dts", "dts.compress, dts.compress_tensor, dts.Adapter, dts.DTSModel, dts.unseen"])
def test_import_brings_nothing_heavy(touch):
    code = f"import sys, torch; before = set(sys.modules); import dts; {touch}; print(*set(sys.modules) - before)"
    added = {name.partition(".")[0] for name in python(code, cwd=ROOT).split()}
    assert "dts" in added and not added & set(HEAVY)


def test_import_alone_does_not_even_bring_torch():
    assert python("import sys, dts; print('torch' in sys.modules)", cwd=ROOT) == "False\n"


def source(folder: Path) -> Path:
    """A copy of what packages are built from, without a library.  Skips where nothing can build them."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("needs the package `build`")
    import setuptools

    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip(f"needs setuptools 77 or newer to build without a network, here is {setuptools.__version__}")
    for name in ("dts", "dts_kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """(wheel, sdist): the wheel is built from the sdist, so the sdist is complete."""
    place = source(tmp_path_factory.mktemp("source") / "dts")
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, place],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | unoptimised(place.parent),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def unoptimised(folder: Path) -> dict[str, str]:
    """A compiler in the environment that takes a quarter of the time; none where there is none."""
    if (command := compiler()) is None:
        return {}
    (folder / "cc").write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@" -O0\n')
    (folder / "cc").chmod(0o755)
    return {"CC": str(folder / "cc")}


@pytest.mark.slow
def test_the_wheel_holds_both_packages_and_nothing_else(distributions):
    names = zipfile.ZipFile(distributions[0]).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"dts", "dts_kernels", "dts_merge"}
    assert {"dts/py.typed", "dts_kernels/py.typed", "dts/cli/app.py", "dts/demo/tasks.py"} <= set(names)
    assert (f"dts_kernels/cpu/{library_name()}" in names) == (compiler() is not None)
    for folder in ("dts", "dts_kernels"):
        files = (p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".c", ".h", ".json"))
        sources = {p.relative_to(ROOT).as_posix() for p in files}
        assert sources <= set(names), sources - set(names)


@pytest.mark.slow
def test_the_sdist_can_be_built_and_read(distributions):
    names = {name.partition("/")[2] for name in tarfile.open(distributions[1]).getnames()}
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "dts/__init__.py"} <= names


def test_an_installed_checkout_is_compiled_once(tmp_path):
    """And not again for each extra that is installed later."""
    place, asked = source(tmp_path / "dts"), tmp_path / "asked"
    (tmp_path / "cc").write_text(f"#!/bin/sh\necho >> {asked}\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    code = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    install = [sys.executable, "-c", code, str(tmp_path)]
    own = {"cwd": place, "env": os.environ | {"CC": str(tmp_path / "cc")}, "capture_output": True, "text": True}
    done = subprocess.run(install, **own)
    assert done.returncode == 0 and "CPU kernels not compiled" in done.stdout and asked.exists(), done.stderr
    asked.unlink()
    (place / "dts_kernels" / "cpu" / library_name()).touch()
    done = subprocess.run(install, **own)
    assert done.returncode == 0 and not asked.exists(), done.stdout + done.stderr


@pytest.mark.slow
def test_the_installed_wheel_works_away_from_the_checkout(distributions, tmp_path):
    zipfile.ZipFile(distributions[0]).extractall(tmp_path / "site")
    code = """
import torch, dts, dts_kernels
assert "site" in dts.__file__ and "site" in dts_kernels.__file__
factors = dts.compress_tensor(torch.randn(40, 30), rank=8)
base = torch.nn.Linear(30, 40)
layer = dts.DTSLinear.from_linear(base)
layer.load_task("a", factors); layer.set_task("a")
x = torch.randn(5, 30)
print((layer(x) - x @ (base.weight + factors.reconstruct()).T - base.bias).abs().max().item() < 1e-3)
"""
    assert python(code, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin"}) == "True\n"
    shown = subprocess.run(
        [sys.executable, "-m", "dts", "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
    )
    assert shown.stdout == f"dts {dts.__version__}\n"
