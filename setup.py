"""Everything static is in pyproject.toml; this file holds what needs a decision at build time."""

import importlib.util
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def _compile_module():
    """dts_kernels/cpu/build.py without its package, which would import torch."""
    spec = importlib.util.spec_from_file_location("compile_kernels", HERE / "dts_kernels" / "cpu" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    """Compile the CPU kernels where there is a compiler; without one the package runs on PyTorch operations.

    A checkout that has the library of these sources keeps it: each extra that is installed later, and each further
    environment, would else compile the same file.  `python -m dts_kernels.cpu.build` does so whenever it is asked.
    """

    def run(self):
        super().run()
        module, folder = _compile_module(), HERE if self.editable_mode else Path(self.build_lib)
        place = folder / "dts_kernels" / "cpu"
        if self.editable_mode and (place / module.library_name()).exists():
            return
        try:
            module.build(place)
        except (RuntimeError, OSError) as error:
            print(f"CPU kernels not compiled, products will run as slower PyTorch operations: {error}")


class WithKernels(Distribution):
    """A package with machine code in it, where there is a compiler."""

    def has_ext_modules(self):
        return _compile_module().compiler() is not None


class AnyPythonWheel(bdist_wheel):
    """The library needs no particular Python, only its platform."""

    def get_tag(self):
        platform = super().get_tag()[2]
        return "py3", "none", platform


setup(distclass=WithKernels, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": AnyPythonWheel})
