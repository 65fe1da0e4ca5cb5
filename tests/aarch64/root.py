"""A bare Debian for aarch64 with PyTorch, run program by program by qemu: no rights, no kernel of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = ("qemu-aarch64-static", "debootstrap", "dpkg-deb", "aarch64-linux-gnu-gcc")
GET = "apt-get install qemu-user-static debootstrap gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
PYTHON = "311"  # of Debian 12
# The last release of which PyPI has a build for CPUs: from 2.11 on those for aarch64 need a GPU's libraries.  So the
# package goes in without its requirements
TORCH = "torch==2.10.0"
OF_TORCH = ("filelock", "sympy", "networkx", "jinja2", "fsspec", "typing_extensions")
LIBC = 36  # minor version of Debian 12's
PLATFORMS = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, LIBC + 1)))
OWN = ("numpy", "safetensors", "typer", "rich", "pytest", "pytest-benchmark", "hypothesis")
CPU = "cortex-a76"  # that of a Raspberry Pi 5, with dot products; PyTorch's build does not run on the Pi 4's


class Root:
    """folder: of Debian's files;  site: of the packages."""

    def __init__(self, place: Path):
        self.folder, self.site, self.home = place / "debian", place / "site", place / "home"

    @classmethod
    def made(cls, place: Path, wheel: Path) -> "Root":
        """With a wheel installed.  Raises RuntimeError where a tool is missing or fails."""
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            raise RuntimeError(f"missing: {', '.join(missing)}.  On Debian: {GET}")
        root = cls(place)
        root.home.mkdir(parents=True)
        # the first stage downloads and needs no emulator; the packages' own scripts, which the second runs, are not
        # needed by a Python
        options = "--foreign", "--arch=arm64", "--variant=minbase", "--include=python3,libgomp1"
        run(["debootstrap", *options, "bookworm", str(root.folder)])
        for package in sorted((root.folder / "var/cache/apt/archives").glob("*.deb")):
            run(["dpkg-deb", "-x", str(package), str(root.folder)])
        root.install([TORCH, str(wheel)], "--no-deps")
        root.install([*OF_TORCH, *OWN])
        return root

    def install(self, what: list[str], *options: str) -> None:
        """By this machine's pip, which unpacks wheels of another one."""
        target = ["--target", str(self.site), "--only-binary=:all:", "--upgrade", *options]
        of = [word for name in PLATFORMS for word in ("--platform", name)]
        of += ["--implementation", "cp", "--python-version", PYTHON, "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
        run([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *target, *of, *what])

    def command(self, arguments: list[str]) -> list[str]:
        """To run its Python."""
        given = {
            "PYTHONPATH": str(self.site),
            "HOME": str(self.home),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        settings = [word for name, value in given.items() for word in ("-E", f"{name}={value}")]
        program = str(self.folder / "usr/bin/python3.11")
        return ["qemu-aarch64-static", "-cpu", CPU, "-L", str(self.folder), *settings, program, *arguments]


def run(command: list[str], **options) -> str:
    """What it prints.  Raises RuntimeError with what it says where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout
