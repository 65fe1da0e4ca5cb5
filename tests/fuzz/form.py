"""An adapter's folder as plain data that can be altered and written again, digests computed anew where asked.

Of every version ``config`` has a row a tensor and ``rows`` are [name, dtype, shape, bytes]; since version 5 they are
packed as they are written (`dts.adapter.packed` checks what it packs, this does not).
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dts.adapter import digests
from dts.adapter import folder as folders
from dts.adapter.packed import ROWS, TABLE, unpacked
from dts.adapter.route import ROUTE, InputStatistics
from dts.adapter.table import pack
from dts.checkpoint.safetensors_file import DTYPES


@dataclass
class Folder:
    """The content of an adapter's folder."""

    config: dict
    rows: list[list]
    files: dict[str, bytes] = field(default_factory=dict)
    text: bytes | None = None  # instead of what the fields say
    model: bytes | None = None
    links: dict[str, str] = field(default_factory=dict)  # file -> what it leads to

    def copy(self) -> "Folder":
        return Folder(json.loads(json.dumps(self.config)), [list(row) for row in self.rows], dict(self.files))

    @property
    def is_packed(self) -> bool:
        return self.config.get("format_version") not in (1, 2, 3, 4)

    def model_bytes(self) -> bytes:
        if self.model is not None:
            return self.model
        rows = blobs_of(self.config, self.rows) if self.is_packed else self.rows
        header, at = {}, 0
        for name, dtype, shape, raw in rows:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
            at += len(raw)
        return with_header(header, b"".join(row[3] for row in rows))

    def text_bytes(self) -> bytes:
        if self.text is not None:
            return self.text
        return json.dumps(packed_text(self.config, self.rows)[0] if self.is_packed else self.config).encode()

    def write(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / folders.CONFIG).write_bytes(self.text_bytes())
        (folder / folders.MODEL).write_bytes(self.model_bytes())
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        for name, target in self.links.items():
            path = folder / name
            if target == "folder":
                path.unlink(missing_ok=True)
                path.mkdir()
                continue
            content = path.read_bytes() if path.is_file() else b"{}"
            path.unlink(missing_ok=True)
            (folder / target).write_bytes(content)
            path.symlink_to(target)

    def parsed(self) -> bool:
        """Brings the fields up to date with altered bytes; False if they have no form any more."""
        if self.text is None and self.model is None:
            return True
        try:
            other = whole(json.loads(self.text_bytes(), object_pairs_hook=once), rows_of(self.model_bytes()))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError, MemoryError):
            return False
        self.config, self.rows, self.text, self.model = *other, None, None
        return True


def once(pairs: list) -> dict:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("twice")
    return dict(pairs)


def rows_of(content: bytes) -> list[list]:
    """[name, dtype, shape, bytes] of a safetensors file."""
    start, rows = 8 + int.from_bytes(content[:8], "little"), []
    for name, row in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = row["data_offsets"]
            rows.append([name, row["dtype"], row["shape"], content[start + first : start + last]])
    return rows


def with_header(header: dict, data: bytes) -> bytes:
    """A safetensors file."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def opened(path: Path) -> Folder:
    files = {
        p.name: p.read_bytes() for p in path.iterdir() if p.name not in (folders.CONFIG, folders.MODEL, folders.CARD)
    }
    text = json.loads((path / folders.CONFIG).read_text("utf-8"))
    return Folder(*whole(text, rows_of((path / folders.MODEL).read_bytes())), files)


def tensors_in(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor, of everything in an adapter's folder."""
    return {name: tensor_of(dtype, shape, raw) for name, dtype, shape, raw in opened(path).rows}


def tensor_of(dtype: str, shape: list, raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=DTYPES[dtype]).view(shape)


def whole(text: dict, rows: list[list]) -> tuple[dict, list[list]]:
    """(config, rows) of what lies on disk, of every version."""
    if not isinstance(text, dict):
        raise ValueError("no object")
    if text.get("format_version") in (1, 2, 3, 4):
        return text, rows
    blobs = {name: raw for name, _, _, raw in rows}
    table = blobs.pop(TABLE)
    elements = {name: len(raw) // DTYPES[name].itemsize for name, raw in blobs.items()}
    config, slices = unpacked(text, table, elements, 1 << 22)
    found = []
    for key, own in slices.items():
        name = digests.NAMES[own.dtype]
        size, count = own.dtype.itemsize, torch.Size(own.shape).numel()
        found.append([key, name, list(own.shape), blobs[name][own.first * size : (own.first + count) * size]])
    return config, found


def packed_text(config: dict, rows: list[list]) -> tuple[dict, bytes]:
    """(content of the text, table) as they lie on disk; raises ValueError for what they cannot say."""
    if not isinstance(config.get("tensors"), dict) or not isinstance(config.get("dropped"), dict):
        raise ValueError("no rows")
    pairs, left = [], list(rows)
    for name, row in config["tensors"].items():
        own = [tensor for tensor in left if owned(tensor[0], name)]
        left = [tensor for tensor in left if tensor not in own]
        if isinstance(row, dict) and (own or "bytes" in row):
            tensors = {key[len(name) :]: [dtype, *shape] for key, dtype, shape, _ in own}
            row = {key: value for key, value in row.items() if key != "bytes"} | {"tensors": tensors}
        pairs.append((name, row))
    if left:
        raise ValueError(f"{left[0][0]} has no row")
    names, templates, table = pack([*pairs, *config["dropped"].items()])
    text = {key: value for key, value in config.items() if key not in ROWS}
    return text | {"names": names, "rows": templates}, table


def owned(key, name: str) -> bool:
    return isinstance(key, str) and key.startswith((f"{name}.", f"{name}["))


def blobs_of(config: dict, rows: list[list]) -> list[list]:
    blobs: dict[str, list] = {}
    order = [row for name in config["tensors"] for row in rows if owned(row[0], name)]
    for _, dtype, _, raw in order:
        blob = blobs.setdefault(dtype, [dtype, dtype, [0], b""])
        blob[3] += raw
        blob[2] = [len(blob[3]) // (DTYPES[dtype].itemsize if dtype in DTYPES else 1)]
    table = packed_text(config, rows)[1]
    return [*blobs.values(), [TABLE, "U8", [len(table)], table]]


def signed(folder: Folder) -> None:
    """All digests anew, as an attacker would, of what still has a form that has digests."""
    if not folder.parsed():
        return
    config = folder.config
    version = config.get("format_version")
    version = version if version in (1, 2, 3, 4) and not isinstance(version, bool) else digests.FORMAT_VERSION
    for name, about in config.get("files", {}).items() if isinstance(config.get("files"), dict) else ():
        if name in folder.files:
            content = folder.files[name]
            if isinstance(about, dict):
                about |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()[:16]}
            elif version < 4:
                config["files"][name] = len(content)
    rows, found = config.get("tensors"), []
    for name, row in rows.items() if isinstance(rows, dict) else ():
        if not isinstance(row, dict):
            continue
        own = {}
        for key, dtype, shape, raw in folder.rows:
            if owned(key, name):
                try:
                    own[key] = tensor_of(dtype, shape, raw)
                except (KeyError, ValueError, TypeError, RuntimeError):
                    continue
        if type(row.get("bytes")) is int:
            row["bytes"] = sum(value.nbytes for value in own.values())
        found.append(digests.row_digest(name, own, row, version))
        row["sha256"] = digests.shown(found[-1], version)
    if version >= 5:
        config["content"] = digests.content_digest(found)
    if version >= 4:
        config["sha256"] = digests.config_digest(config)
        if ROUTE in folder.files:
            folder.files[ROUTE] = route_signed(folder.files[ROUTE], config["sha256"])


def route_signed(content: bytes, adapter: str) -> bytes:
    """The file of what a router knows with its digests anew; as it was where it has no form."""
    stop = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:stop])
        about = header["__metadata__"]
        tensors = {name: tensor_of(*row) for name, *row in rows_of(content)}
        found = InputStatistics(about["layer"], int(about["examples"]), **tensors).digest
        header["__metadata__"] = about | {"sha256": found, "adapter": adapter}
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError):
        return content
    return with_header(header, content[stop:])
