"""The adapter folder, read and written: ``dts_config.json``, ``dts_model.safetensors``, a card, and tokenizer files.

docs/format.md has it byte by byte.  ``dts_config.json`` holds beside the rows of the tensors: ``finetuned`` (how its
names and dtypes follow from the base's), ``dropped`` (tensors the budget left at the base, with the norm of what is
missing), ``files`` (tokenizer files that differ from the base's) and ``model_config`` (the fine-tune's config.json).
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

import dts.adapter.check as check
from dts import __version__
from dts.adapter.carried import about_file, check_files, copy_files
from dts.adapter.digests import READABLE, Contents, config_digest, content_digest, digest_of, shown
from dts.adapter.entries import Entry
from dts.adapter.errors import AdapterError
from dts.adapter.packed import FACTORS, ROWS, TABLE, Blobs, blobs_of, unpacked_file
from dts.adapter.rows import Load, entry_from, entry_tensors
from dts.adapter.sizes import Texts, describe, total_bytes
from dts.checkpoint import Damaged, SafetensorsFile, write_safetensors
from dts.checkpoint.errors import first
from dts.checkpoint.safetensors_file import Layout, tensor_bytes
from dts.checkpoint.strict_json import NotStrict, parse
from dts.files import Building, building, check_place, set_aside, within
from dts_kernels.layout import PackedFactors

if TYPE_CHECKING:
    from dts.adapter.data import AdapterData

LARGEST_TEXT = 1 << 25  # bytes of a configuration and of a header: some hundred thousand matrices
Stored = SafetensorsFile | Blobs  # both give tensors by name
CONFIG, MODEL, CARD = "dts_config.json", "dts_model.safetensors", "README.md"


class Described(NamedTuple):
    """An adapter of which no tensor was read yet.  stored: what reads them, of the files as they were."""

    config: dict
    stored: Stored

    @property
    def layout(self) -> Layout:
        """Dtype and shape of every tensor that is stored, by its name."""
        return {name: (tensor.dtype, tensor.shape) for name, tensor in self.stored.tensors.items()}


def read_folder(folder: Path, verify: bool = True, described: Described | None = None) -> tuple[dict, dict[str, Entry]]:
    """(config, entries) of an adapter folder, in memory of their own: what becomes of the files cannot touch them.

    verify: compare all digests.  Everything else is checked in any case, before any of it is used.
    described: what `read_about` gave, which is not read again, and is of no use afterwards.
    Raises AdapterError with all that is wrong, also where a file was altered since.
    """
    try:
        config, stored = described or _described(folder)
        texts = dict[str, str]()
        entries, wrong = _entries(config, stored, verify, texts)
    except Damaged as error:
        raise AdapterError(str(error)) from None
    if verify and config["format_version"] >= 4 and config_digest(config, texts) != config["sha256"]:
        wrong.append(f"{CONFIG} was altered after it was written")
    if wrong:
        raise AdapterError(f"{folder} is damaged:\n  " + "\n  ".join(wrong))
    return config, entries


def read_config(folder: Path) -> dict:
    """The config of `read_folder` alone: no tensor but the table of rows is read, and no digest compared."""
    return read_layout(folder)[0]


def read_layout(folder: Path) -> tuple[dict, Layout]:
    """The config, and dtype and shape of every tensor that is stored, by its name; no more is read than by
    `read_config`."""
    found = read_about(folder)
    return found.config, found.layout


def read_about(folder: Path) -> Described:
    """What `read_folder` begins with; raises AdapterError."""
    try:
        return _described(folder)
    except Damaged as error:
        raise AdapterError(str(error)) from None


def _other(folder: Path) -> str:
    """What a place is instead of an adapter's folder, and what to do."""
    if not folder.exists():
        return ".  There is nothing of this name: dts list FOLDER shows the adapters in a folder"
    if (folder / "config.json").is_file():
        return ".  It is a model: dts compress BASE FINE-TUNE makes an adapter of one, dts diff compares two"
    return ".  Give the folder that dts compress wrote: dts list FOLDER shows the adapters in a folder"


def _described(folder: Path) -> Described:
    """Raises AdapterError or Damaged."""
    absent = [name for name in (CONFIG, MODEL) if not (folder / name).is_file()]
    if absent:
        raise AdapterError(
            f"{folder} is not an adapter: it has no {' and no '.join(absent)}{set_aside(folder) or _other(folder)}"
        )
    outside = [name for name in (CONFIG, MODEL) if not within(folder, folder / name)]
    if outside:
        raise AdapterError(
            f"{folder} is damaged: {' and '.join(outside)} is a link to a place outside of it, which is not followed"
        )
    config = read_text(folder / CONFIG)
    if whole := config["format_version"] < 5:
        config = checked(config, folder / CONFIG)
    file = SafetensorsFile(folder / MODEL, mapped=False, largest_header=LARGEST_TEXT)
    if whole:
        return Described(config, file)
    config, stored = unpacked_file(config, file, 2 * LARGEST_TEXT)  # templates have dtypes and shapes as well
    return Described(checked(config, folder / CONFIG), stored)


def _entries(config: dict, file: Stored, verify: bool, texts: dict[str, str]) -> tuple[dict[str, Entry], list[str]]:
    """(entries, a line for all that is wrong with them); texts: as for `digest_of`."""
    wrong: list[str] = []
    entries: dict[str, Entry] = {}
    found, version, load = list[str](), config["format_version"], _Load(file)
    for name, row in config["tensors"].items():
        load.own.clear()
        try:
            entry = entry_from(name, row, config, load)
        except AdapterError as error:
            wrong.append(str(error))
            load.used |= {key for key in file.tensors if key.startswith(name)}  # told already
            continue
        nbytes = sum([file.tensors[key].nbytes for key in load.own])
        if row["kind"] != "tied" and nbytes != row["bytes"]:
            wrong.append(f"{name}: {nbytes} bytes are stored of it, recorded {row['bytes']}")
        elif verify:
            found.append(digest_of(name, load.contents(), row, version, texts))
            if shown(found[-1], version) != row["sha256"]:
                wrong.append(f"{name}: what is stored of it was altered")
        entries[name] = entry
    if verify and not wrong and version >= 5 and content_digest(found) != config["content"]:
        wrong.append("what is stored was altered")
    wrong += [f"{name}: not in {CONFIG}" for name in sorted(set(file.tensors) - load.used)]
    return entries, wrong


class _Load(Load):
    """What a file holds, each tensor once.

    used: all that was asked for;  own: the tensors of the present row, None where none was made
    """

    def __init__(self, file: Stored):
        self.file, self.used, self.own = file, set[str](), dict[str, Tensor | None]()

    def __call__(self, key: str) -> Tensor | None:
        if key not in self.file.tensors:
            return None
        self._take(key)
        self.own[key] = tensor = self.file.load(key)
        return tensor

    def packed(self, place: str) -> PackedFactors | None:
        found = self.file.packed(place) if isinstance(self.file, Blobs) else None
        for end in FACTORS if found is not None else ():
            self._take(place + end)
            self.own[place + end] = None
        return found

    def contents(self) -> Contents:
        """Of the present row."""
        found = {}
        for key, tensor in self.own.items():
            about, content = self.file.tensors[key], self.file.content(key)
            content = tensor_bytes(tensor) if content is None and tensor is not None else content
            found[key] = about.dtype, about.shape, memoryview(b"") if content is None else content
        return found

    def _take(self, key: str) -> None:
        if key in self.used:
            raise AdapterError(f"{key} is said to belong to two tensors")
        self.used.add(key)


def read_text(path: Path) -> dict:
    """What ``dts_config.json`` holds, of a version that can be read; raises AdapterError."""
    with open(path, "rb") as file:
        text = file.read(LARGEST_TEXT + 1)
    try:  # infinite numbers of a model's configuration were once written as such
        config = parse(text, LARGEST_TEXT, constants=True)
    except NotStrict as error:
        raise AdapterError(f"{path} is damaged: {error}") from None
    version = config.get("format_version") if isinstance(config, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise AdapterError(f"{path} is damaged: it has no format_version")
    if version not in READABLE:
        raise AdapterError(
            f"{path} has format {version}; this version of dts, {__version__}, reads {READABLE[0]} to {READABLE[-1]}: "
            "a newer one may have written it, and reads it: pip install --upgrade dts-merge"
        )
    return config


def checked(config: dict, path: Path) -> dict:
    """A configuration with all that is read later; raises AdapterError with everything that is wrong with it.

    ``files`` of versions that had only their sizes are given as this version has them.  path: of its file.
    """
    version = config["format_version"]
    wrong = check.problems(config)
    if wrong:
        raise AdapterError(f"{path} is damaged: {first(wrong, 50, '; ')}")
    if version < 4:
        config["files"] = {name: {"bytes": size, "sha256": None} for name, size in config["files"].items()}
        config["model_config"] = plain_config(config["model_config"])
    elif not _finite({key: value for key, value in config.items() if key not in ROWS}):  # each of whose numbers was
        raise AdapterError(f"{path} is damaged: it has NaN or Infinity, which is no JSON number")
    return config


def _finite(config: dict) -> bool:
    """Whether JSON has a number for each of its numbers."""
    try:
        json.dumps(config, allow_nan=False)
    except ValueError:
        return False
    return True


def write_folder(adapter: AdapterData, out: Path, overwrite: bool = False, place: Building | None = None) -> Path:
    """Writes the folder beside ``out`` and renames it, so that ``out`` is a whole adapter or what it was before.

    place: of a run that is building there already.  Raises FileExistsError if there is something else.
    """
    out = Path(out)
    check_files(adapter)
    with nullcontext(place) if place else building(out, lambda: check_out(out, overwrite)) as place:
        partial = place.fresh()
        texts, sizes = complete(adapter)
        write_model(adapter, texts.table, sizes, partial / MODEL)
        (partial / CONFIG).write_text(texts.config, "utf-8", newline="\n")
        (partial / CARD).write_text(texts.card, "utf-8", newline="\n")
        copy_files(adapter, partial)
        if adapter.inputs is not None:
            adapter.inputs.write(partial, adapter.config["sha256"])
        place.finish()
    adapter.folder = out
    adapter.files = {name: out / name for name in adapter.files}
    return out


def check_out(out: Path, overwrite: bool) -> None:
    """Refuses to write over what is not an adapter, and over an adapter unless asked to."""
    check_place(out, overwrite, "an adapter", lambda folder: (folder / CONFIG).is_file())


def write_model(adapter: AdapterData, table: bytes, sizes: dict[str, Layout], path: Path) -> None:
    """``dts_model.safetensors``: the table of rows, and each blob's tensors one after another.

    sizes: layouts of the entries' tensors, by the entries' names.
    """
    blobs, members = blobs_of(sizes.values(), table)
    tensors: dict[str, Tensor] = {}
    for entry in adapter.entries.values():
        tensors |= entry_tensors(entry)

    def load(blob: str) -> Tensor | list[Tensor]:
        if blob == TABLE:
            return torch.frombuffer(bytearray(table), dtype=torch.uint8) if table else torch.empty(0, dtype=torch.uint8)
        return [tensors[key] for key in members[blob]]

    write_safetensors(path, blobs, load)


def complete(adapter: AdapterData) -> tuple[Texts, dict[str, Layout]]:
    """The texts, and the layouts of the entries' tensors; brings the adapter's config up to date with its entries.

    Raises AdapterError if the result could not be read again (names with control characters, ...).
    """
    config = adapter.config
    base_digests = {name: row.get("base") for name, row in config["tensors"].items()}
    sizes = describe(config, adapter.entries.values(), base_digests)
    config["files"] = {name: about_file(path) for name, path in adapter.files.items()}
    config["model_config"] = plain_config(config["model_config"])
    check_writable(parse(json.dumps(config).encode(), LARGEST_TEXT))
    texts = total_bytes(config, sizes, adapter.beside)
    if len(texts.config.encode()) > LARGEST_TEXT:
        raise AdapterError(
            f"the adapter {adapter.name!r} cannot be written: its {CONFIG} would have more than {LARGEST_TEXT:,} bytes"
        )
    return texts, sizes


def check_writable(config: dict) -> None:
    """Raises AdapterError naming all of a config that could not be read again: control characters in names, NaN, ..."""
    wrong = check.problems(config | {"sha256": "0" * 16} | ({} if "content" in config else {"content": "0" * 16}))
    if wrong:
        raise AdapterError(f"the adapter {config['task']['name']!r} cannot be written: " + "; ".join(wrong))


def plain_config(given: dict | None) -> dict | None:
    """A model's configuration as JSON gives it back: keys are text, infinite numbers as transformers writes them."""
    if given is None:
        return None

    def plain(value):
        if isinstance(value, float) and not math.isfinite(value):
            return {"__float__": "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"}
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    return plain(json.loads(json.dumps(given)))
