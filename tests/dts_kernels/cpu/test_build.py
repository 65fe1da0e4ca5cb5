"""The C sources under sanitizers, and without a compiler.  Cross-compiled for Arm: `make test-aarch64`."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dts_kernels.cpu import build, native
from tests.dts_kernels.cpu.sanitize import FLAGS

SELFTEST = Path(__file__).with_name("selftest.c")


def self_test(tmp_path, command, machine, flags) -> Path:
    """The self-test with the library's objects, as a program."""
    objects = build.compile_objects(command, tmp_path, machine, flags)
    program = tmp_path / "selftest"
    subprocess.run(
        [
            *command,
            *build.COMMON,
            *flags,
            f"-I{build.SOURCES}",
            str(SELFTEST),
            *objects,
            "-o",
            str(program),
            "-lm",
            "-lpthread",
            "-ldl",
        ],
        check=True,
    )
    return program


def passes(command, **environment):
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.sanitize
@pytest.mark.skipif(build.compiler() is None, reason="needs a C compiler")
def test_address_and_undefined_behaviour_sanitizers(tmp_path):
    """A variant takes ten seconds."""
    command = build.compiler()
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }")
    linked = subprocess.run([*command, *FLAGS, str(probe), "-o", str(tmp_path / "probe")], capture_output=True)
    if linked.returncode:
        pytest.skip("this compiler cannot link the sanitizers (libasan, libubsan)")
    out = passes([self_test(tmp_path, command, platform.machine(), FLAGS)])
    ran = [line.removesuffix(" done") for line in out.splitlines() if line.endswith(" done")]
    assert "portable" in ran and ran == list(native.variants()), out


def test_a_library_for_another_machine_has_its_name(monkeypatch):
    own = build.library_name()
    assert own.endswith(f"-{platform.machine().lower()}.so")
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "linux-aarch64")
    assert build.library_name() == f"{own.rpartition('-')[0]}-aarch64.so"


def test_without_a_compiler_products_work_and_say_once_that_they_are_slow(tmp_path):
    program = (
        "import warnings, torch\n"
        "from dts_kernels import Bank, PackedFactors, Routing, delta_linear, dispatch, pack\n"
        "from dts_kernels.cpu import load\n"
        "import pathlib; load._package_folder = lambda: pathlib.Path('nowhere')\n"
        "codes = torch.randint(0, 4, (20, 6), dtype=torch.uint8)\n"
        "bank = Bank(20, 20); bank.add(0, PackedFactors(pack(codes), pack(codes), torch.rand(6)))\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(3): delta_linear(torch.randn(2, 20), bank, Routing.of([0]))\n"
        "assert dispatch.ran == {('delta_linear', 'table'): 3}, dispatch.ran\n"
        "assert [w.category for w in caught] == [RuntimeWarning], [str(w.message) for w in caught]\n"
    )
    empty = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "CC": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | empty)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(build.compiler() is None, reason="needs a C compiler")
def test_a_compiler_that_knows_no_vector_flags_leaves_portable_c(tmp_path):
    wrapper = tmp_path / "cc"
    refused = 'for a; do case "$a" in -mavx*|-march*|-DUSE_NEON) exit 1;; esac; done'
    wrapper.write_text(f'#!/bin/sh\n{refused}\nexec {build.compiler()[0]} "$@"\n')
    wrapper.chmod(0o755)
    objects = build.compile_objects([str(wrapper)], tmp_path, platform.machine(), ["-O0"])
    names = {f"{path.name}.o" for path in build.SOURCES.glob("*.c")} - {"variant.c.o"} | {"portable.o"}
    assert {"delta_linear.c.o", "samples.c.o"} <= names == {Path(o).name for o in objects}


def test_a_broken_compiler_is_quoted(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "false")
    with pytest.raises(RuntimeError, match="false does not compile variant.c"):
        build.build(tmp_path)
