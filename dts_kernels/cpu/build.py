"""Compile the C library with the machine's own compiler: each variant of the inner loops with its own flags.

Used by setup.py (into the installed package), by `python -m dts_kernels.cpu.build`, and at first use of a
checkout that was never installed (into the user's cache).  The file's name holds a digest of the sources,
so an old library is never loaded with new code.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).with_name("src")
COMMON = ["-std=gnu11", "-O3", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra"]
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mprefer-vector-width=512"]
_X86 = {  # fastest first
    "avx512vbmi": ("simd_avx512.h", [*_AVX512, "-mavx512vbmi"]),
    "avx512": ("simd_avx512.h", _AVX512),
    "avx2": ("simd_avx2.h", ["-mavx2", "-mfma"]),
}
_ARM = {
    "neondot": ("simd_vector.h", ["-march=armv8.2-a+dotprod", "-DUSE_NEON"]),
    "neon": ("simd_vector.h", ["-DUSE_NEON"]),
}
VARIANTS = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}


def machine() -> str:
    """What is compiled for: this machine, or where a wheel is made for another one (``_PYTHON_HOST_PLATFORM``, which
    sysconfig and setuptools go by) that."""
    return os.environ.get("_PYTHON_HOST_PLATFORM", "").rpartition("-")[2].lower() or platform.machine().lower()


def library_name() -> str:
    """File name of the library that belongs to these sources."""
    digest = hashlib.sha256()
    for path in [*sorted(SOURCES.iterdir()), Path(__file__)]:
        if path.suffix in (".c", ".h", ".py"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"native-{digest.hexdigest()[:16]}-{machine()}.so"


def compiler() -> list[str] | None:
    """The C compiler's command: $CC, else cc, gcc or clang; None where there is none."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    return [found] if found else None


def compile_objects(command: list[str], folder: Path, machine: str, flags=()) -> list[str]:
    """Objects of the library in ``folder``; variants whose flags the compiler does not know are left out.

    Raises RuntimeError with the compiler's words where even portable C does not compile.
    """

    def run(source: str, out: str, arguments: list[str]) -> tuple[str, subprocess.CompletedProcess]:
        path = str(folder / out)
        whole = [*command, *COMMON, *flags, *arguments, "-c", str(SOURCES / source), "-o", path]
        return path, subprocess.run(whole, capture_output=True, text=True)

    def variant(item):
        name, (header, extra) = item
        return run("variant.c", f"{name}.o", [*extra, f"-DVARIANT={name}", f'-DSIMD_HEADER="{header}"'])

    wanted = VARIANTS.get(machine.lower(), {}) | {"portable": ("simd_vector.h", [])}
    sources = sorted(path.name for path in SOURCES.glob("*.c") if path.name != "variant.c")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        variants = list(pool.map(variant, wanted.items()))
        built = [name for name, (_, done) in zip(wanted, variants) if not done.returncode]
        known = f"-DVARIANTS(DO)={' '.join(f'DO({name})' for name in built)}"
        others = list(pool.map(lambda source: run(source, f"{source}.o", [known]), sources))
    for source, (_, done) in [("variant.c", variants[-1]), *zip(sources, others)]:
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)} does not compile {source}:\n{done.stderr}")
    return [path for path, done in [*variants, *others] if not done.returncode]


def build(folder: Path, flags=()) -> Path:
    """Compile and link the library into ``folder``; returns its path.  Raises RuntimeError or OSError if it cannot."""
    command = compiler()
    if command is None:
        raise RuntimeError("no C compiler: install gcc or clang, or name one in CC")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        objects = compile_objects(command, Path(work), machine(), flags)
        out = Path(work) / library_name()
        result = subprocess.run(
            [*command, *flags, "-shared", *objects, "-o", str(out), "-lm", "-lpthread", "-ldl"],
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise RuntimeError(f"{shlex.join(command)} does not link the library:\n{result.stderr}")
        with open(out, "rb") as file:
            os.fsync(file.fileno())  # after a power cut a library of zeros would end the process that loads it
        return out.replace(folder / out.name)  # complete or absent, also for those who look meanwhile


def main() -> None:
    """Build into the package's own folder."""
    try:
        built = build(Path(__file__).parent)
    except (RuntimeError, OSError) as error:
        sys.exit(str(error))
    for old in Path(__file__).parent.glob("native-*.so"):
        if old != built:
            old.unlink()
    print(built)


if __name__ == "__main__":
    main()
