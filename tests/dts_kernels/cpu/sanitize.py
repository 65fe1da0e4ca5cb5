"""The kernels' tests with the C library under AddressSanitizer and UBSan: `make sanitize`, Linux and gcc.

Exits non-zero where the sanitizers are missing: a check that did not run must not look like one that passed.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dts_kernels.cpu import build

FLAGS = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
HERE = Path(__file__).parent
TESTS = [HERE / "test_native.py", HERE / "test_native_samples.py", HERE.parent / "test_samples.py",
         HERE.parent / "test_ops.py", HERE.parent / "test_neighbours.py"]


def main() -> int:
    os.environ.setdefault("CC", "gcc")
    with tempfile.TemporaryDirectory() as folder:
        try:
            library = build.build(Path(folder), FLAGS)
            runtime = subprocess.run([*build.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True,
                                     check=True).stdout.strip()
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            print(f"this compiler has no sanitizers (needed: gcc, libasan, libubsan): {error}", file=sys.stderr)
            return 2
        if not Path(runtime).is_absolute():
            print("gcc finds no libasan.so: install libasan (Debian: libgcc-12-dev, Fedora: libasan)", file=sys.stderr)
            return 2
        environment = os.environ | {
            "DTS_LIBRARY": str(library), "LD_PRELOAD": runtime, "OMP_NUM_THREADS": "1",
            # leaks are the interpreter's; torch's own vector instructions confuse the interceptors of string functions
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        runs = [(pytest + [str(HERE / "test_build.py"), "-k", "sanitizers"], dict(os.environ)),
                (pytest + [str(t) for t in TESTS] + sys.argv[1:], environment)]
        listed = "from dts_kernels.cpu import native; print(*native.variants())"
        variants = subprocess.run([sys.executable, "-c", listed], env=environment, capture_output=True, text=True)
        if variants.returncode or not variants.stdout.split():
            print(f"the library with sanitizers does not load: {variants.stderr}", file=sys.stderr)
            return 2
        property_test = str(HERE.parent / "test_operands.py")
        runs += [(pytest + [property_test], environment | {"DTS_VARIANT": name, "DTS_EXAMPLES": "400"})
                 for name in variants.stdout.split()]
        for command, own in runs:
            done = subprocess.run(command, env=own)
            if done.returncode:
                print(f"failed under the sanitizers: {' '.join(command)}", file=sys.stderr)
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
