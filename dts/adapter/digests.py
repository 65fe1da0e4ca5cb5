"""Versions of the format, and the digests by which accidents are found; docs/format.md has both.

Everything is under a digest: a tensor's name, dtype, shape and bytes with its row under the row's ``sha256``, files
under theirs, the rest under the config's.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii

import torch
from torch import Tensor

from dts.adapter.entries import Entry
from dts.checkpoint.safetensors_file import NAMES, tensor_bytes
from dts.codec.parts import kind_of

FORMAT_VERSION = 5  # 1 had no 8-bit vectors, 2 no sketches, 3 digests of bytes and rows only, 4 no table and no blobs
READABLE = (1, 2, 3, 4, 5)
Contents = Mapping[str, tuple[torch.dtype, tuple[int, ...], memoryview]]  # of tensors by their names, with their bytes


def version_of(entries: Iterable[Entry], digests: bool = True) -> int:
    """The format that these entries need; whoever writes a folder asks here.

    digests: with those of this version, in its table and blobs, as all that is written now.
    """
    needed = FORMAT_VERSION if digests else 1
    for entry in entries:
        kinds = [kind_of(data) for factors in entry.matrices if factors is not None for data in factors.stored]
        needed = max(
            [
                needed,
                5 if entry.grid is not None else 2 if entry.scale is not None else 1,
                *[kind.version for kind in kinds],
            ]
        )
    return needed


def row_digest(name: str, tensors: dict[str, Tensor], row: dict, version: int = FORMAT_VERSION) -> str:
    """Hex digits over an entry's row and its tensors: 64, of which `shown` are recorded; before version 4 without any
    name, dtype or shape."""
    contents = {key: (t.dtype, tuple(t.shape), tensor_bytes(t)) for key, t in tensors.items()}
    return digest_of(name, contents, row, version)


def digest_of(
    name: str, tensors: Contents, row: dict, version: int = FORMAT_VERSION, texts: dict[str, str] | None = None
) -> str:
    """`row_digest` of what is known of the tensors.

    texts: name -> canonical text of the row, to which it is added, for `config_digest`; since version 4.
    """
    own = {k: v for k, v in row.items() if k != "sha256"}
    if version < 4:
        total = hashlib.sha256(canonical(own, version))
    else:
        text = _CANONICAL.encode(own)
        total = hashlib.sha256(f"[{encode_basestring_ascii(name)},{text}]".encode())
        if texts is not None:
            texts[name] = _with_digest(text, row)
    for key in sorted(tensors):
        dtype, shape, content = tensors[key]
        if version >= 4:
            total.update(_about(key, dtype, shape))
        total.update(content)
    return total.hexdigest()


def _with_digest(text: str, row: dict) -> str:
    """The canonical text of a row of that text without its ``sha256``, which is its last key before the shape."""
    before, behind, more = (*text.split(_SHAPE), "", "", "")[:3]
    if not behind or more or "sha256" not in row:
        return _CANONICAL.encode(row)
    return f'{before},"sha256":{_CANONICAL.encode(row["sha256"])}{_SHAPE}{behind}'


def _about(key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    """``canonical([key, dtype, shape])``, in a fifth of its time."""
    return f"[{encode_basestring_ascii(key)},{_form(dtype, shape)}".encode()


@lru_cache(maxsize=4096)
def _form(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Most tensors of a model have the forms of others."""
    return f'"{NAMES[dtype]}",[{",".join(map(str, shape))}]]'


def shown(digest: str, version: int = FORMAT_VERSION) -> str:
    """What a row records of its digest: since version 5 enough to tell which tensor was altered, as another digest is
    over all of them."""
    return digest[: 16 if version < 5 else 8]


def content_digest(digests: Iterable[str]) -> str:
    """16 hex digits over the whole digests of all rows, in order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def config_digest(config: dict, texts: Mapping[str, str] | None = None) -> str:
    """16 hex digits over the configuration without its ``sha256``.

    texts: name -> canonical text of a row of ``tensors``, if all of them are known: half of all there is to write.
    """
    own = {k: v for k, v in config.items() if k != "sha256"}
    if texts is None or texts.keys() != own["tensors"].keys():
        return hashlib.sha256(canonical(own)).hexdigest()[:16]
    rows = ",".join([f"{encode_basestring_ascii(name)}:{texts[name]}" for name in sorted(texts)])
    parts = {k: f"{{{rows}}}" if k == "tensors" else _CANONICAL.encode(v) for k, v in own.items()}
    text = ",".join([f"{encode_basestring_ascii(key)}:{parts[key]}" for key in sorted(parts)])
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()[:16]


def identity(config: dict) -> str:
    """`config_digest` of an adapter that was loaded, which has compared the one that it records, or was just written:
    not made anew where there is one, as since version 4."""
    recorded: str | None = config.get("sha256")
    return recorded or config_digest(config)


def file_digest(content: bytes) -> str:
    """16 hex digits over a file's bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False)
_SHAPE = ',"shape":'  # as text within a row cannot have it, where quotes have a backslash before them
_SPACED = json.JSONEncoder(sort_keys=True, check_circular=False)


def canonical(value, version: int = FORMAT_VERSION) -> bytes:
    """The one JSON text of a value: ASCII, keys sorted, without spaces (before version 4 with them)."""
    return (_CANONICAL if version >= 4 else _SPACED).encode(value).encode()
