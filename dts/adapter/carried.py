"""The tokenizer and processor files that an adapter carries: which may be, and that they are as they were recorded."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from dts.adapter.digests import file_digest
from dts.adapter.errors import AdapterError
from dts.adapter.tokenizer import SUFFIXES, TEXT_FILES
from dts.files import within
from dts.values import line

if TYPE_CHECKING:
    from dts.adapter.data import AdapterData


def plain_name(name) -> bool:
    """Is it the name of a file in the folder itself, on every system, so that no copy of it lands elsewhere?"""
    if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name:
        return False
    return PureWindowsPath(name).name == name  # which knows both separators and drives


def carried(name) -> bool:
    """May an adapter carry a file of this name?  Tokenizer and processor files; no weights, no code."""
    return (
        plain_name(name)
        and line(name)
        and any(fnmatchcase(name, pattern) for pattern in TEXT_FILES)
        and name.endswith(SUFFIXES)
    )


def about_file(path: Path) -> dict:
    """What a config says of a file beside it."""
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": file_digest(content)}


def file_problems(adapter: AdapterData) -> list[str]:
    """A line for each tokenizer file that is missing, altered, a link, or would be copied elsewhere."""
    wrong = []
    for name in adapter.files:
        try:
            checked_file(adapter, name)
        except AdapterError as error:
            wrong.append(str(error))
    return wrong


def checked_file(adapter: AdapterData, name: str) -> bytes:
    """The content of one of the adapter's tokenizer files; raises AdapterError unless it is as it was recorded."""
    path, about = adapter.files[name], adapter.config["files"].get(name)
    if not plain_name(name):
        raise AdapterError(f"{name!r}: not the name of a file in the adapter's folder")
    if not carried(name):
        raise AdapterError(f"{name!r}: no tokenizer or processor file, and an adapter carries no others")
    if not path.is_file():
        raise AdapterError(f"{name}: the file is missing")
    if adapter.folder is not None and not within(adapter.folder, path):
        raise AdapterError(f"{name}: a link to a place outside of the folder, which is not followed")
    content = path.read_bytes()
    if about is not None and len(content) != about["bytes"]:
        raise AdapterError(f"{name}: {len(content)} bytes, recorded {about['bytes']}")
    if about is not None and about["sha256"] not in (None, file_digest(content)):
        raise AdapterError(f"{name}: the file was altered")
    return content


def check_files(adapter: AdapterData) -> None:
    """Raises AdapterError unless every tokenizer file can be copied as it was recorded."""
    wrong = file_problems(adapter)
    if wrong:
        raise AdapterError(f"the adapter {adapter.name!r} is damaged:\n  " + "\n  ".join(wrong))


def copy_files(adapter: AdapterData, folder: Path) -> None:
    """Writes the tokenizer files into a folder: the very bytes that were checked."""
    for name in adapter.files:
        (folder / name).write_bytes(checked_file(adapter, name))
