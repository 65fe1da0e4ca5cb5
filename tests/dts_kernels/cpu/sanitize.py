"""The kernels' tests with the C library under AddressSanitizer and UBSan: `make sanitize`, Linux and gcc.

First a planted overflow, which must be caught; then the self-test (C alone, every variant), the tests of every op, and
the property tests once a variant.  Exits non-zero where the sanitizers are missing or a step ran no test: a check that
did not run must not look like one that passed.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from dts_kernels.cpu import build

FLAGS = ["-g1", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
EXAMPLES = "200"  # of each property and variant
HERE = Path(__file__).parent
TESTS = [
    HERE / "test_native.py",
    HERE / "test_native_samples.py",
    HERE / "test_native_vectors.py",
    HERE.parent / "test_rounded.py",
    HERE.parent / "test_samples.py",
    HERE.parent / "test_ops.py",
    HERE.parent / "test_neighbours.py",
]
PLANTED = """
import torch
from dts_kernels.cpu import load
packed, out = torch.zeros(64, dtype=torch.uint8), torch.empty(4 * 4096)
load.library().dts_unpack(load.named(None), 1, packed.data_ptr(), 4096, 1, 4096, None, out.data_ptr(),
                            out.numel(), 4 * out.numel(), 0)
"""
VARIANTS = "from dts_kernels.cpu import native; print(*native.variants())"


def main() -> int:
    os.environ.setdefault("CC", "gcc")
    clean = {name: value for name, value in os.environ.items() if name not in ("DTS_NATIVE", "DTS_VARIANT")}
    with tempfile.TemporaryDirectory() as folder:
        try:
            library = build.build(Path(folder), FLAGS)
            runtimes = [_runtime("libasan.so"), _runtime("libstdc++.so")]
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            return _fail(f"this compiler has no sanitizers (needed: gcc, libasan, libubsan): {error}")
        environment = clean | {
            # exceptions pass through AddressSanitizer, which has to find the C++ library that throws them
            "DTS_LIBRARY": str(library),
            "LD_PRELOAD": " ".join(runtimes),
            "OMP_NUM_THREADS": "1",
            # leaks are the interpreter's; torch's own vector instructions confuse the interceptors of string functions
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:halt_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        planted = subprocess.run([sys.executable, "-c", PLANTED], env=environment, capture_output=True, text=True)
        if not planted.returncode or "heap-buffer-overflow" not in planted.stderr:
            return _fail(f"a planted overflow was not caught: {planted.stderr[-2000:]}")
        print("a planted overflow is caught", flush=True)
        listed = subprocess.run([sys.executable, "-c", VARIANTS], env=environment, capture_output=True, text=True)
        if listed.returncode or not listed.stdout.split():
            return _fail(f"the library with sanitizers does not load: {listed.stderr}")
        operands = str(HERE.parent / "test_operands.py")
        steps = [
            ("self-test of all variants", [str(HERE / "test_build.py"), "-m", "sanitize"], clean),
            ("every op", [*map(str, TESTS), operands, *sys.argv[1:]], environment | {"DTS_EXAMPLES": "50"}),
        ]
        steps += [
            (
                f"properties with {name}",
                [operands, "-k", "test_products or test_rows"],
                environment | {"DTS_VARIANT": name, "DTS_EXAMPLES": EXAMPLES},
            )
            for name in listed.stdout.split()
        ]
        for what, arguments, own in steps:
            report, begun = Path(folder, "report.xml"), time.monotonic()
            # --capture=sys: what the sanitizers write goes past Python and must be seen
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-x",
                    "-p",
                    "no:cacheprovider",
                    "--capture=sys",
                    f"--junit-xml={report}",
                    *arguments,
                ],
                env=own,
            )
            if done.returncode:
                return _fail(f"failed under the sanitizers: {what}", done.returncode)
            ran = _ran(report)
            if not ran:
                return _fail(f"no test ran: {what}")
            print(f"{what}: {ran} tests, {time.monotonic() - begun:.0f} s", flush=True)
    return 0


def _runtime(name: str) -> str:
    found = subprocess.run([*build.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute() or not path.exists():
        raise RuntimeError(f"gcc finds no {name}: install it (Debian: libgcc-12-dev, g++; Fedora: libasan, gcc-c++)")
    return str(path.resolve())


def _ran(report: Path) -> int:
    """Tests of a run that were not skipped."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    return sum(int(suite.get("tests")) - int(suite.get("skipped", 0)) for suite in suites)


def _fail(why: str, code: int = 2) -> int:
    print(why, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
