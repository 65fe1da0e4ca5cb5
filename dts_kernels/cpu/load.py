"""The compiled library: found, built if need be, and bound with ctypes (which releases the GIL around each call)."""

import ctypes
import functools
import os
import warnings
from pathlib import Path

from .build import build, library_name


def _package_folder() -> Path:
    return Path(__file__).parent


def cache_folder() -> Path:
    """Where a checkout that was never installed keeps its build."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dts"


def _bind(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, i32, i64, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_char_p
    library.dts_variant.argtypes, library.dts_variant.restype = [i32], text
    for record in ("delta_linear", "embedding", "add_samples", "add_sampled_rows", "add_vectors", "rounded_rows"):
        getattr(library, f"dts_{record}").argtypes = [text]
    library.dts_reconstruct.argtypes = [
        text,
        i32,
        i32,
        pointer,
        i64,
        pointer,
        i64,
        pointer,
        i64,
        pointer,
        i64,
        i64,
        i32,
        i64,
        i64,
    ]
    matrix: list = [pointer, i64, i64]  # numbers there are, and from row to row
    library.dts_round_components.argtypes = [text, *matrix, *matrix, *matrix, pointer, i64, i64, i64]
    library.dts_unpack.argtypes = [text, i32, pointer, i64, i64, i64, pointer, pointer, i64, i64, i32]
    return library


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library beside this file, in the cache, or built into the cache now; None (said once) without a compiler.

    DTS_NATIVE=0 in the environment turns it off.  DTS_LIBRARY=path takes that one, of these sources, and no other: a
    build with sanitizers, say (`make sanitize`).
    """
    if os.environ.get("DTS_NATIVE", "1") == "0":
        return None
    if os.environ.get("DTS_LIBRARY"):
        return _bind(Path(os.environ["DTS_LIBRARY"]))
    name, problem = library_name(), None
    for folder in (_package_folder(), cache_folder()):
        try:
            if (folder / name).exists():
                return _bind(folder / name)
        except OSError as error:
            problem = error
    try:
        return _bind(build(cache_folder()))
    except (RuntimeError, OSError) as error:
        warnings.warn(
            f"the compiled CPU kernels are not available, products with packed factors run as much slower PyTorch "
            f"operations: {problem or error}",
            RuntimeWarning,
            stacklevel=2,
        )
    return None


@functools.cache
def loaded() -> ctypes.CDLL:
    """The library for those who have seen that it is there."""
    found = library()
    if found is None:
        raise RuntimeError("the compiled CPU kernels are not available here")
    return found


@functools.cache
def variants() -> tuple[str, ...]:
    """The instruction sets that this machine can run, fastest first; empty without the library.

    DTS_VARIANT in the environment keeps only the one it names.
    """
    found = library()
    if found is None:
        return ()
    names: list[str] = []
    while (name := found.dts_variant(len(names))) is not None:
        names.append(name.decode())
    only = os.environ.get("DTS_VARIANT")
    if only and only not in names:
        raise ValueError(f"DTS_VARIANT={only} is not one of this machine's {names}")
    return (only,) if only else tuple(names)


def variant() -> str:
    """The instruction set in use, "" without the library."""
    return variants()[0] if variants() else ""


@functools.cache
def named(name: str | None) -> bytes:
    """What C calls a variant; None: the one in use."""
    return (name or variant()).encode()


@functools.cache
def name_of(name: str | None) -> int:
    """The same in memory that stays, for records."""
    kept = _names.setdefault(name, ctypes.create_string_buffer(named(name)))
    return ctypes.addressof(kept)


_names: dict[str | None, ctypes.Array] = {}
