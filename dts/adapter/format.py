"""The adapter folder: entries <-> tensors and rows <-> files.  docs/format.md has it byte by byte; in short:

    <tensor>.u .v .sigma  one matrix's factors (.levels of method "paper");  <tensor>[e].u ... of expert e
    .rows, .columns       as `dts.codec.index_to_disk` stores them
    <tensor>.samples      uint8 [rows, groups / 4], a sketch's elements; .samples1 ... of a mixture's other members
    <tensor>.delta        int8 where the tensor's row has a ``scale``, its step;  <tensor>.value
    <tensor>.added        rows beyond the base's vocabulary, whole, in the fine-tune's dtype

``dts_config.json`` holds beside: ``finetuned`` (how its names and dtypes follow from the base's), ``dropped``
(tensors the budget left at the base, with the norm of what is missing), ``files`` (tokenizer files that differ from
the base's) and ``model_config`` (the fine-tune's config.json).  Everything is under a digest: a tensor's name, dtype,
shape and bytes with its row under the row's ``sha256``, files under theirs, the rest under the config's.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dts.adapter import check
from dts.adapter.card import card
from dts.adapter.entries import AdapterError, Entry
from dts.checkpoint import Damaged, SafetensorsFile, write_safetensors
from dts.checkpoint.pairing import swap_prefix
from dts.checkpoint.safetensors_file import NAMES, Layout, header_bytes, layout_of, tensor_bytes
from dts.checkpoint.strict_json import NotStrict, parse
from dts.codec import Factors, Part, index_from_disk, index_to_disk
from dts.files import Building, building, check_place, set_aside
from dts_kernels.layout import PackedFactors
from dts_kernels.samples import Samples

FORMAT_VERSION = 4  # 1 had no 8-bit vectors, 2 no sketches, 3 digests of bytes and rows only
READABLE = (1, 2, 3, 4)
LARGEST_TEXT = 1 << 25  # bytes of a configuration and of a header: some hundred thousand matrices
LARGEST_VALUE = 1e30  # of an element of a difference: sums of many of them are still numbers in float32
CONFIG, MODEL, CARD = "dts_config.json", "dts_model.safetensors", "README.md"


# -- one entry ------------------------------------------------------------------------------------------------------


def factors_tensors(factors: Factors) -> dict[str, Tensor]:
    """Suffix -> tensor as stored."""
    packed = factors.packed
    tensors = {"u": packed.u, "v": packed.v, "sigma": packed.sigma}
    tensors |= {samples_key(i): one.codes for i, one in enumerate(factors.samples)}
    if packed.levels is not None:
        tensors["levels"] = packed.levels
    for side, kept, size in zip(("rows", "columns"), (factors.rows, factors.columns), factors.shape):
        if kept is not None:
            tensors[side] = index_to_disk(kept, size)
    return tensors


def samples_key(i: int) -> str:
    return f"samples{i or ''}"


def entry_tensors(entry: Entry) -> dict[str, Tensor]:
    """Name in the file -> tensor, of everything an entry stores."""
    tensors = {}
    if isinstance(entry.factors, list):
        for expert, factors in enumerate(entry.factors):
            if factors is not None:
                tensors |= {f"{entry.name}[{expert}].{key}": t for key, t in factors_tensors(factors).items()}
    elif entry.factors is not None:
        tensors |= {f"{entry.name}.{key}": t for key, t in factors_tensors(entry.factors).items()}
    if entry.tensor is not None:
        tensors[f"{entry.name}.{entry.kind}"] = entry.tensor
    if entry.added_rows is not None:
        tensors[f"{entry.name}.added"] = entry.added_rows
    return tensors


def version_of(entries: Iterable[Entry], digests: bool = True) -> int:
    """The format that these entries need; whoever writes a folder asks here.

    digests: with those of this version, as all that is written now.
    """
    entries = list(entries)
    features = {
        4: digests,
        3: any(f is not None and f.samples for entry in entries for f in matrices(entry)),
        2: any(entry.scale is not None for entry in entries),
    }
    return next((version for version, used in features.items() if used), 1)


def digest(name: str, tensors: dict[str, Tensor], row: dict, version: int = FORMAT_VERSION) -> str:
    """16 hex digits over an entry's row and its tensors; before version 4 without any name, dtype or shape."""
    row = {k: v for k, v in row.items() if k != "sha256"}
    total = hashlib.sha256(canonical(row if version < 4 else [name, row], version))
    for key in sorted(tensors):
        if version >= 4:
            total.update(canonical([key, NAMES[tensors[key].dtype], list(tensors[key].shape)]))
        total.update(tensor_bytes(tensors[key]))
    return total.hexdigest()[:16]


def config_digest(config: dict) -> str:
    """16 hex digits over the configuration without its ``sha256``."""
    return hashlib.sha256(canonical({k: v for k, v in config.items() if k != "sha256"})).hexdigest()[:16]


def canonical(value, version: int = FORMAT_VERSION) -> bytes:
    """The one JSON text of a value: ASCII, keys sorted, without spaces (before version 4 with them)."""
    separators = (",", ":") if version >= 4 else None
    return json.dumps(value, sort_keys=True, separators=separators).encode()


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def number(x: float | None) -> float | None:
    """To 7 digits: what float32 arithmetic knows of it."""
    return None if x is None else float(f"{x:.7g}")


def entry_row(entry: Entry, dtype: torch.dtype, base_digest: str | None, sizes: Layout) -> dict:
    """An entry's row of ``tensors``, but for its ``sha256``.

    dtype: the fine-tune's main one, rows name theirs only where it differs.
    """
    row = {"shape": list(entry.shape), "kind": entry.kind}
    if entry.kind == "tied":
        return row | {"tied_to": entry.tied_to}
    if isinstance(entry.factors, list):
        row["experts"] = [
            None
            if f is None
            else [[vars(p) for p in f.parts], number(f.squared_error), number(f.norm)]
            + [samples_row(f)] * bool(f.samples)
            for f in entry.factors
        ]
    elif entry.factors is not None:
        row["parts"] = [vars(p) for p in entry.factors.parts]
        if entry.factors.samples:
            row["samples"] = samples_row(entry.factors)
    row["bytes"] = sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in sizes.values())
    if entry.kind in ("factors", "experts") or entry.scale is not None:
        row["squared_error"] = number(entry.squared_error)
    if entry.scale is not None:
        row["scale"] = entry.scale
    if not entry.task_only:
        row |= {"norm": number(entry.norm), "base": base_digest}
    if entry.task_only:
        row["task_only"] = True
    if entry.dtype != dtype:
        row["dtype"] = short(entry.dtype)
    return row


def samples_row(factors: Factors) -> list[dict]:
    """What the codes of samples do not say."""
    return [{"stride": one.stride, "seed": one.seed, "scale": one.scale} for one in factors.samples]


def entry_from(name: str, row: dict, config: dict, load: Callable[[str], Tensor | None]) -> Entry:
    """The inverse of `entry_tensors` and `entry_row`; ``load`` gives None for a tensor the file does not have.

    row: as `check.problems` lets it pass.  Raises AdapterError for tensors that are missing, do not fit the row or each
    other, or hold what is no number.
    """
    finetuned = config["finetuned"]
    task_only, shape, kind = row.get("task_only", False), tuple(row["shape"]), row["kind"]
    entry = Entry(
        name,
        None if task_only else base_name_of(name, finetuned),
        shape,
        kind,
        dtype=getattr(torch, row.get("dtype", finetuned["dtype"])),
        task_only=task_only,
        tied_to=row.get("tied_to"),
        norm=row.get("norm") or 0.0,
        squared_error=row.get("squared_error", 0.0),
        added_rows=load(f"{name}.added") if kind == "factors" else None,
        scale=row.get("scale"),
    )
    if entry.added_rows is not None:
        added = entry.added_rows
        if added.dtype != entry.dtype or added.shape[1:] != shape[1:] or not 0 < added.shape[0] < shape[0]:
            raise AdapterError(
                f"{name}: added rows of {short(added.dtype)} {list(added.shape)} do not belong to "
                f"{short(entry.dtype)} {list(shape)}"
            )
        check_numbers(f"{name}.added", added)
    if kind in ("delta", "value"):
        entry.tensor = load(f"{name}.{kind}")
        if entry.tensor is None or tuple(entry.tensor.shape) != shape:
            raise AdapterError(f"{name}: its {kind} is missing or not {list(shape)}")
        stored = entry.tensor.dtype
        if (entry.scale is not None) != (kind == "delta" and stored == torch.int8):
            raise AdapterError(f"{name}: a scale belongs to an int8 delta, and the other way round")
        belongs = (entry.dtype,) if kind == "value" else (entry.dtype, torch.float32)  # mixtures of deltas are float32
        if stored not in belongs and entry.scale is None:
            raise AdapterError(f"{name}: its {kind} is {short(stored)}, which does not belong to {short(entry.dtype)}")
        check_numbers(f"{name}.{kind}", entry.tensor)
    elif kind == "experts":
        if len(shape) != 3 or len(row["experts"]) != shape[0]:
            raise AdapterError(f"{name}: {len(row['experts'])} experts where {list(shape)} belongs")
        entry.factors = [
            None if e is None else factors_from(f"{name}[{i}]", shape[1:], load, *e)
            for i, e in enumerate(row["experts"])
        ]
    elif "parts" in row:
        if len(shape) < 2:
            raise AdapterError(f"{name}: factors of a tensor of shape {list(shape)}")
        matrix = entry.base_shape[0], torch.Size(entry.base_shape[1:]).numel()
        entry.factors = factors_from(
            name, matrix, load, row["parts"], row["squared_error"], row["norm"], row.get("samples", ())
        )
    elif kind == "factors" and (entry.added_rows is None or "samples" in row):
        raise AdapterError(f"{name}: it has neither parts nor added rows")
    return entry


def check_numbers(name: str, tensor: Tensor) -> None:
    """Raises AdapterError for NaN (infinite elements can be meant: masks) and for truth values that are neither."""
    if tensor.is_floating_point() or tensor.is_complex():
        wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()
        if wide.isnan().any():
            raise AdapterError(f"{name}: {int(wide.isnan().sum())} elements are no numbers")
    elif tensor.dtype == torch.bool and tensor.numel() and tensor.view(torch.uint8).max() > 1:
        raise AdapterError(f"{name}: elements that are neither true nor false")


def factors_from(name: str, shape, load, parts: list[dict], squared_error, norm: float, samples=()) -> Factors:
    stored = {key: load(f"{name}.{key}") for key in ("u", "v", "sigma", "levels", "rows", "columns")}
    parts = tuple(Part(part["kind"], part["rank"]) for part in parts)
    absent = [key for key in ("u", "v", "sigma") if stored[key] is None]
    if absent:
        raise AdapterError(f"{name}: its {', '.join(absent)} is missing")
    rows, columns = (index_from(f"{name}.{key}", stored[key], size) for key, size in zip(("rows", "columns"), shape))
    sizes = tuple(len(kept) if kept is not None else size for kept, size in zip((rows, columns), shape))
    rank = sum(part.rank for part in parts)
    try:
        packed = PackedFactors(stored["u"], stored["v"], stored["sigma"], stored["levels"])
    except ValueError as error:
        raise AdapterError(f"{name}: {error}") from None
    if packed.shape != sizes or packed.rank != rank:
        raise AdapterError(
            f"{name}: factors of {list(packed.shape)}, rank {packed.rank}, where {list(sizes)}, rank {rank} belongs"
        )
    if (packed.levels is not None) != (bool(parts) and parts[0].kind == "paper"):
        raise AdapterError(f'{name}: levels belong to method "paper", and the other way round')
    for key in ("u", "v"):
        check_padding(f"{name}.{key}", stored[key], rank)
    own = tuple(samples_from(name, i, row, sizes, load) for i, row in enumerate(samples))
    factors = Factors(packed, tuple(shape), rows, columns, parts, norm, squared_error, own)
    if not largest_value(factors) <= LARGEST_VALUE:
        raise AdapterError(f"{name}: its sigma or levels are no numbers, or too large")
    return factors


def largest_value(factors: Factors) -> float:
    """A bound on the elements of the matrix; NaN if there is any in it."""
    packed = factors.packed
    levels = 4.0 if packed.levels is None else packed.levels.double().abs().max().item()
    return packed.sigma.double().abs().sum().item() * levels**2 + sum(4 * abs(one.scale) for one in factors.samples)


def index_from(name: str, stored: Tensor | None, size: int) -> Tensor | None:
    """Kept rows or columns of ``size``: int64, ascending.  Raises AdapterError unless they are just that."""
    if stored is None:
        return None
    if stored.dtype == torch.uint8:
        if tuple(stored.shape) != ((size + 7) // 8,) or not stored.any() or size % 8 and stored[-1] >> size % 8:
            raise AdapterError(f"{name}: {list(stored.shape)} bytes are no mask of {size}")
        return index_from_disk(stored)
    if stored.dtype != torch.int32 or stored.dim() != 1 or not len(stored):
        raise AdapterError(f"{name}: {short(stored.dtype)} {list(stored.shape)} are no indices")
    kept = index_from_disk(stored)
    if kept[0] < 0 or kept[-1] >= size or (kept.diff() <= 0).any():
        raise AdapterError(f"{name}: indices are not ascending within {size}")
    return kept


def check_padding(name: str, stored: Tensor, rank: int) -> None:
    """Raises AdapterError unless the bits beyond the last of ``rank`` codes of every row are 0."""
    if rank % 4 and stored.numel() and (stored[:, -1] >> 2 * (rank % 4)).any():
        raise AdapterError(f"{name}: bits beyond its {rank} codes are set")


def samples_from(name: str, i: int, row: dict, shape: tuple[int, int], load) -> Samples:
    codes = load(f"{name}.{samples_key(i)}")
    if codes is None:
        raise AdapterError(f"{name}: its {samples_key(i)} is missing")
    try:
        samples = Samples(codes, row["scale"], row["stride"], row["seed"], shape)
    except ValueError as error:
        raise AdapterError(f"{name}: {error}") from None
    check_padding(f"{name}.{samples_key(i)}", codes, samples.groups)
    return samples


def base_name_of(name: str, finetuned: dict) -> str:
    """The base's name of a tensor; finetuned: the config's section."""
    known = finetuned["renamed"].get(name)
    return known or swap_prefix(name, finetuned["prefix"], finetuned["base_prefix"])


# -- the folder -----------------------------------------------------------------------------------------------------


def total_bytes(config: dict, sizes: Layout) -> tuple[str, str, int]:
    """(config text, card text, bytes of the whole folder); sets ``bytes`` and ``amr`` of the config to the truth.

    Its ``sha256`` too.  config: complete, with its ``tensors`` and ``files``;  sizes: of all tensors.
    """
    start, _ = header_bytes(sizes)
    payload = sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in sizes.values())
    fixed, total = len(start) + payload + sum(f["bytes"] for f in config["files"].values()), 0
    config["sha256"] = "0" * 16
    while True:  # the texts say how many bytes they take
        config["bytes"] = total
        config["amr"] = number(total / (4 * max(1, config["base"]["parameters"])))
        text, readme = config_text(config), card(config)
        size = fixed + len(text.encode()) + len(readme.encode())
        if size <= total:
            config["sha256"] = config_digest(config)  # as long as what it takes the place of
            return config_text(config) + "\n" * (total - size), readme, total
        total = size


def config_text(config: dict) -> str:
    """JSON with a line a tensor."""
    head = json.dumps({k: v for k, v in config.items() if k != "tensors"}, ensure_ascii=False)
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in config["tensors"].items())
    return f'{head[:-1]},\n"tensors": {{\n{rows}\n}}}}\n'


def describe(config: dict, entries: Iterable[Entry], base_digests: dict, digests: bool = True) -> Layout:
    """Brings ``tensors`` and ``format_version`` of a config up to date; gives the layout of all tensors.

    base_digests: by the entries' names;  digests: else zeros of the same length, while sizes are planned.
    """
    entries, sizes = list(entries), {}
    dtype = getattr(torch, config["finetuned"]["dtype"])
    config["format_version"], config["tensors"] = version_of(entries), {}
    for entry in entries:
        own = entry_tensors(entry)
        layout = layout_of(own.items())
        row = config["tensors"][entry.name] = entry_row(entry, dtype, base_digests.get(entry.name), layout)
        row["sha256"] = digest(entry.name, own, row) if digests else "0" * 16
        sizes |= layout
    return sizes


def complete(adapter) -> tuple[dict[str, Tensor], str, str]:
    """All tensors, and the texts; brings the adapter's config up to date with its entries.

    Raises AdapterError if the result could not be read again (names with control characters, ...).
    """
    config = adapter.config
    base_digests = {name: row.get("base") for name, row in config["tensors"].items()}
    sizes = describe(config, adapter.entries.values(), base_digests)
    config["files"] = {name: about_file(path) for name, path in adapter.files.items()}
    config["model_config"] = plain_config(config["model_config"])
    text, readme, _ = total_bytes(config, sizes)
    check_writable(parse(text.encode(), LARGEST_TEXT))
    tensors = {}
    for entry in adapter.entries.values():
        tensors |= entry_tensors(entry)
    return tensors, text, readme


def check_writable(config: dict) -> None:
    """Raises AdapterError naming all of a config that could not be read again: control characters in names, NaN, ..."""
    wrong = check.problems(config | {"sha256": "0" * 16})
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


def about_file(path: Path) -> dict:
    """What a config says of a file beside it."""
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()[:16]}


def write(adapter, out: Path, overwrite: bool = False, place: Building | None = None) -> Path:
    """Writes the folder beside ``out`` and renames it, so that ``out`` is a whole adapter or what it was before.

    place: of a run that is building there already.  Raises FileExistsError if there is something else.
    """
    out = Path(out)
    check_files(adapter)
    with nullcontext(place) if place else building(out, lambda: check_out(out, overwrite)) as place:
        partial = place.fresh()
        tensors, text, readme = complete(adapter)
        write_safetensors(partial / MODEL, layout_of(tensors.items()), tensors.__getitem__)
        (partial / CONFIG).write_text(text, "utf-8", newline="\n")
        (partial / CARD).write_text(readme, "utf-8", newline="\n")
        copy_files(adapter, partial)
        place.finish()
    adapter.folder = out
    adapter.files = {name: out / name for name in adapter.files}
    return out


def check_out(out: Path, overwrite: bool) -> None:
    """Refuses to write over what is not an adapter, and over an adapter unless asked to."""
    check_place(out, overwrite, "an adapter", lambda folder: (folder / CONFIG).is_file())


def file_problems(adapter) -> list[str]:
    """A line for each tokenizer file that is missing, altered, a link, or would be copied elsewhere."""
    wrong = []
    for name in adapter.files:
        try:
            checked_file(adapter, name)
        except AdapterError as error:
            wrong.append(str(error))
    return wrong


def checked_file(adapter, name: str) -> bytes:
    """The content of one of the adapter's tokenizer files; raises AdapterError unless it is as it was recorded."""
    path, about = adapter.files[name], adapter.config["files"].get(name)
    if not check.plain_name(name):
        raise AdapterError(f"{name!r}: not the name of a file in the adapter's folder")
    if not check.carried(name):
        raise AdapterError(f"{name!r}: no tokenizer or processor file, and an adapter carries no others")
    if not path.is_file():
        raise AdapterError(f"{name}: the file is missing")
    if adapter.folder is not None and not within(adapter.folder, path):
        raise AdapterError(f"{name}: a link to a place outside of the folder, which is not followed")
    content = path.read_bytes()
    if about is not None and len(content) != about["bytes"]:
        raise AdapterError(f"{name}: {len(content)} bytes, recorded {about['bytes']}")
    if about is not None and about["sha256"] not in (None, hashlib.sha256(content).hexdigest()[:16]):
        raise AdapterError(f"{name}: the file was altered")
    return content


def check_files(adapter) -> None:
    """Raises AdapterError unless every tokenizer file can be copied as it was recorded."""
    wrong = file_problems(adapter)
    if wrong:
        raise AdapterError(f"the adapter {adapter.name!r} is damaged:\n  " + "\n  ".join(wrong))


def copy_files(adapter, folder: Path) -> None:
    """Writes the tokenizer files into a folder: the very bytes that were checked."""
    for name in adapter.files:
        (folder / name).write_bytes(checked_file(adapter, name))


def within(folder: Path, path: Path) -> bool:
    """Does a file lie in the folder, links followed?  Those of a hub's cache lead to its own store."""
    folder, path = folder.resolve(), path.resolve()
    stores = [folder] + [folder.parent.parent / "blobs"] * (folder.parent.name == "snapshots")
    return path.parent in stores


def read(folder: Path, verify: bool = True) -> tuple[dict, dict[str, Entry]]:
    """(config, entries) of an adapter folder, in memory of their own: what becomes of the files cannot touch them.

    verify: compare all digests.  Everything else is checked in any case, before any of it is used.
    Raises AdapterError with all that is wrong.
    """
    absent = [name for name in (CONFIG, MODEL) if not (folder / name).is_file()]
    if absent:
        raise AdapterError(f"{folder} is not an adapter: it has no {' and no '.join(absent)}{set_aside(folder)}")
    outside = [name for name in (CONFIG, MODEL) if not within(folder, folder / name)]
    if outside:
        raise AdapterError(
            f"{folder} is damaged: {' and '.join(outside)} is a link to a place outside of it, which is not followed"
        )
    config = read_config(folder / CONFIG)
    try:
        file = SafetensorsFile(folder / MODEL, mapped=False, largest_header=LARGEST_TEXT)
        entries, wrong = _entries(config, file, verify)
    except Damaged as error:
        raise AdapterError(str(error)) from None
    if verify and config["format_version"] >= 4 and config_digest(config) != config["sha256"]:
        wrong.append(f"{CONFIG} was altered after it was written")
    if wrong:
        raise AdapterError(f"{folder} is damaged:\n  " + "\n  ".join(wrong))
    return config, entries


def _entries(config: dict, file: SafetensorsFile, verify: bool) -> tuple[dict[str, Entry], list[str]]:
    """(entries, a line for all that is wrong with them)."""
    used, wrong, entries = set(), [], {}

    def load(own: dict[str, Tensor], key: str) -> Tensor | None:
        if key not in file.tensors:
            return None
        if key in used:
            raise AdapterError(f"{key} is said to belong to two tensors")
        used.add(key)
        own[key] = file.load(key)
        return own[key]

    for name, row in config["tensors"].items():
        own: dict[str, Tensor] = {}
        try:
            entry = entry_from(name, row, config, partial(load, own))
        except AdapterError as error:
            wrong.append(str(error))
            used |= {key for key in file.tensors if key.startswith(name)}  # told already
            continue
        nbytes = sum(tensor.nbytes for tensor in own.values())
        if row["kind"] != "tied" and nbytes != row["bytes"]:
            wrong.append(f"{name}: {nbytes} bytes are stored of it, recorded {row['bytes']}")
        elif verify and digest(name, own, row, config["format_version"]) != row["sha256"]:
            wrong.append(f"{name}: what is stored of it was altered")
        entries[name] = entry
    wrong += [f"{name}: not in {CONFIG}" for name in sorted(set(file.tensors) - used)]
    return entries, wrong


def read_config(path: Path) -> dict:
    """``dts_config.json``, with all that is read later; raises AdapterError with everything that is wrong with it.

    ``files`` of versions that had only their sizes are given as this version has them.
    """
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
            f"{path} has format {version}; this version reads {' and '.join(map(str, READABLE))}: "
            "a newer dts may have written it"
        )
    wrong = check.problems(config)
    if wrong:
        raise AdapterError(f"{path} is damaged: {'; '.join(wrong[:50])}" + (len(wrong) > 50) * "; and more")
    if version < 4:
        config["files"] = {name: {"bytes": size, "sha256": None} for name, size in config["files"].items()}
        config["model_config"] = plain_config(config["model_config"])
    elif plain_config(config) != config:
        raise AdapterError(f"{path} is damaged: it has NaN or Infinity, which is no JSON number")
    return config


def matrices(entry: Entry) -> list[Factors | None]:
    """All factors of an entry: one, or one an expert; none if it is not factorised."""
    if entry.kind not in ("factors", "experts"):
        return []
    return entry.factors if isinstance(entry.factors, list) else [entry.factors]


def whole_error(norm: float, factors: list[Factors | None]) -> float | None:
    """Squared relative error of a tensor whose delta has this norm; what has no factors is lost whole.

    None if one of the factors does not know its own.
    """
    kept = [f for f in factors if f is not None]
    if any(f.squared_error is None for f in kept):
        return None
    if not norm:
        return 0.0
    return max(0.0, 1 - sum((1 - f.squared_error) * f.norm**2 for f in kept) / norm**2)
