"""The adapter folder: entries <-> tensors and rows <-> files.  DESIGN section 4, and these tensors beside:

    <tensor>.added        rows beyond the base's vocabulary, whole, in the fine-tune's dtype
    <tensor>[e].u ...     factors of expert e of a tensor [E, m, n]
    .rows, .columns       as `dts.codec.index_to_disk` stores them
    <tensor>.samples      uint8 [rows, groups / 4], a sketch's elements; .samples1 ... of a mixture's other members
    <tensor>.delta        int8 where the tensor's row has a ``scale``, its step

``dts_config.json`` holds beside: ``finetuned`` (how its names and dtypes follow from the base's), ``dropped``
(tensors the budget left at the base, with the norm of what is missing), ``files`` (tokenizer files that differ from
the base's) and ``model_config`` (the fine-tune's config.json).  A row's ``sha256`` is over the tensor's stored
bytes and the rest of the row, its ``base`` is the sampled digest of the base's tensor.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from dts.adapter import check
from dts.adapter.card import card
from dts.adapter.entries import KINDS, Entry
from dts.checkpoint import Damaged, SafetensorsFile, write_safetensors
from dts.checkpoint.pairing import swap_prefix
from dts.checkpoint.safetensors_file import Layout, header_bytes, layout_of, tensor_bytes
from dts.codec import Factors, Part, index_from_disk, index_to_disk
from dts.files import Building, building, check_place, set_aside
from dts_kernels.layout import PackedFactors
from dts_kernels.samples import Samples

FORMAT_VERSION = 3  # 1 had no 8-bit vectors, 2 no sketches
READABLE = (1, 2, 3)
CONFIG, MODEL, CARD = "dts_config.json", "dts_model.safetensors", "README.md"


class AdapterError(ValueError):
    """A folder that is not a whole adapter, or not one for this base."""


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


def digest(tensors: dict[str, Tensor], row: dict) -> str:
    """16 hex digits over the bytes of an entry's tensors and its row."""
    total = hashlib.sha256(json.dumps({k: v for k, v in row.items() if k != "sha256"}, sort_keys=True).encode())
    for name in sorted(tensors):
        total.update(tensor_bytes(tensors[name]))
    return total.hexdigest()[:16]


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
            None if f is None else
            [[vars(p) for p in f.parts], number(f.squared_error), number(f.norm)] + [samples_row(f)] * bool(f.samples)
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
    """The inverse of `entry_tensors` and `entry_row`; ``load`` gives None for a tensor the file does not have."""
    if row["kind"] not in KINDS:
        raise AdapterError(f"{name} is stored as {row['kind']!r}, which this version does not know")
    finetuned = config["finetuned"]
    task_only, shape = row.get("task_only", False), tuple(row["shape"])
    entry = Entry(
        name,
        None if task_only else base_name_of(name, finetuned),
        shape,
        row["kind"],
        dtype=getattr(torch, row.get("dtype", finetuned["dtype"])),
        task_only=task_only,
        tied_to=row.get("tied_to"),
        norm=row.get("norm") or 0.0,
        squared_error=row.get("squared_error", 0.0),
        added_rows=load(f"{name}.added"),
        scale=row.get("scale"),
    )
    if entry.kind in ("delta", "value"):
        entry.tensor = load(f"{name}.{entry.kind}")
        if entry.tensor is None or tuple(entry.tensor.shape) != shape:
            raise AdapterError(f"{name}: its {entry.kind} is missing or not {list(shape)}")
        if (entry.scale is not None) != (entry.kind == "delta" and entry.tensor.dtype == torch.int8):
            raise AdapterError(f"{name}: a scale belongs to an int8 delta, and the other way round")
    elif entry.kind == "experts":
        matrix = entry.base_shape[1:]
        entry.factors = [
            None if e is None else factors_from(f"{name}[{i}]", matrix, load, *e)
            for i, e in enumerate(row["experts"])
        ]
    elif "parts" in row:
        matrix = entry.base_shape[0], torch.Size(entry.base_shape[1:]).numel()
        entry.factors = factors_from(name, matrix, load, row["parts"], row["squared_error"], row["norm"],
                                     row.get("samples", ()))
    return entry


def factors_from(name: str, shape, load, parts: list[dict], squared_error, norm: float, samples=()) -> Factors:
    stored = {key: load(f"{name}.{key}") for key in ("u", "v", "sigma", "levels", "rows", "columns")}
    parts = tuple(Part(part["kind"], part["rank"]) for part in parts)
    absent = [key for key in ("u", "v", "sigma") if stored[key] is None]
    if absent:
        raise AdapterError(f"{name}: its {', '.join(absent)} is missing")
    rows, columns = (None if stored[key] is None else index_from_disk(stored[key]) for key in ("rows", "columns"))
    sizes = tuple(len(kept) if kept is not None else size for kept, size in zip((rows, columns), shape))
    rank = sum(part.rank for part in parts)
    try:
        packed = PackedFactors(stored["u"], stored["v"], stored["sigma"], stored["levels"])
    except ValueError as error:
        raise AdapterError(f"{name}: {error}") from error
    if packed.shape != sizes or packed.rank != rank:
        raise AdapterError(
            f"{name}: factors of {list(packed.shape)}, rank {packed.rank}, where {list(sizes)}, rank {rank} belongs"
        )
    own = tuple(samples_from(name, i, row, sizes, load) for i, row in enumerate(samples))
    return Factors(packed, tuple(shape), rows, columns, parts, norm, squared_error, own)


def samples_from(name: str, i: int, row: dict, shape: tuple[int, int], load) -> Samples:
    codes = load(f"{name}.{samples_key(i)}")
    if codes is None:
        raise AdapterError(f"{name}: its {samples_key(i)} is missing")
    if not isinstance(row["scale"], float) or not math.isfinite(row["scale"]):
        raise AdapterError(f"{name}: the scale of its {samples_key(i)} is {row['scale']!r}")
    try:
        return Samples(codes, row["scale"], row["stride"], row["seed"], shape)
    except ValueError as error:
        raise AdapterError(f"{name}: {error}") from error


def base_name_of(name: str, finetuned: dict) -> str:
    """The base's name of a tensor; finetuned: the config's section."""
    known = finetuned["renamed"].get(name)
    return known or swap_prefix(name, finetuned["prefix"], finetuned["base_prefix"])


# -- the folder -----------------------------------------------------------------------------------------------------


def total_bytes(config: dict, sizes: Layout) -> tuple[str, str, int]:
    """(config text, card text, bytes of the whole folder); sets ``bytes`` and ``amr`` of the config to the truth.

    config: complete, with its ``tensors`` and ``files`` {name: bytes};  sizes: of all tensors.
    """
    start, _ = header_bytes(sizes)
    payload = sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in sizes.values())
    fixed, total = len(start) + payload + sum(config["files"].values()), 0
    while True:  # the texts say how many bytes they take
        config["bytes"] = total
        config["amr"] = number(total / (4 * max(1, config["base"]["parameters"])))
        text, readme = config_text(config), card(config)
        size = fixed + len(text.encode()) + len(readme.encode())
        if size <= total:
            return text + "\n" * (total - size), readme, total
        total = size


def config_text(config: dict) -> str:
    """JSON with a line a tensor."""
    head = json.dumps({k: v for k, v in config.items() if k != "tensors"}, ensure_ascii=False)
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in config["tensors"].items())
    return f'{head[:-1]},\n"tensors": {{\n{rows}\n}}}}\n'


def complete(adapter) -> tuple[dict[str, Tensor], str, str]:
    """All tensors, and the texts; brings the adapter's config up to date with its entries."""
    config = adapter.config
    dtype = getattr(torch, config["finetuned"]["dtype"])
    rows, tensors = {}, {}
    for entry in adapter.entries.values():
        own = entry_tensors(entry)
        base_digest = config["tensors"].get(entry.name, {}).get("base")
        row = rows[entry.name] = entry_row(entry, dtype, base_digest, layout_of(own.items()))
        row["sha256"] = digest(own, row)
        tensors |= own
    config["tensors"] = rows
    config["files"] = {name: path.stat().st_size for name, path in adapter.files.items()}
    text, readme, _ = total_bytes(config, layout_of(tensors.items()))
    return tensors, text, readme


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
        for name, path in adapter.files.items():
            shutil.copyfile(path, partial / name)
        place.finish()
    adapter.folder = out
    adapter.files = {name: out / name for name in adapter.files}
    return out


def check_out(out: Path, overwrite: bool) -> None:
    """Refuses to write over what is not an adapter, and over an adapter unless asked to."""
    check_place(out, overwrite, "an adapter", lambda folder: (folder / CONFIG).is_file())


def file_problems(adapter) -> list[str]:
    """A line for each tokenizer file that is missing, of another size than recorded, or would be copied elsewhere."""
    sizes, wrong = adapter.config["files"], []
    for name, path in adapter.files.items():
        if not check.plain_name(name):
            wrong.append(f"{name!r}: not the name of a file in the adapter's folder")
        elif not path.is_file():
            wrong.append(f"{name}: the file is missing")
        elif path.stat().st_size != sizes.get(name, path.stat().st_size):
            wrong.append(f"{name}: {path.stat().st_size} bytes, recorded {sizes[name]}")
    return wrong


def check_files(adapter) -> None:
    """Raises AdapterError unless every tokenizer file can be copied as it was recorded."""
    wrong = file_problems(adapter)
    if wrong:
        raise AdapterError(f"the adapter {adapter.name!r} is damaged:\n  " + "\n  ".join(wrong))


def read(folder: Path) -> tuple[dict, dict[str, Entry]]:
    """(config, entries) of an adapter folder; tensors are views on the mapped file."""
    absent = [name for name in (CONFIG, MODEL) if not (folder / name).is_file()]
    if absent:
        raise AdapterError(f"{folder} is not an adapter: it has no {' and no '.join(absent)}{set_aside(folder)}")
    config = read_config(folder / CONFIG)
    try:
        file = SafetensorsFile(folder / MODEL)
    except Damaged as error:
        raise AdapterError(str(error)) from error
    used = set()

    def load(name: str) -> Tensor | None:
        used.add(name)
        return file.load(name) if name in file.tensors else None

    entries, wrong = {}, []
    for name, row in config["tensors"].items():
        try:
            entries[name] = entry_from(name, row, config, load)
        except (ValueError, AttributeError, IndexError, KeyError, TypeError, RuntimeError) as error:
            wrong.append(str(error) if isinstance(error, AdapterError) else f"{name}: {error!r}")
    wrong += [f"{name}: not in {CONFIG}" for name in sorted(set(file.tensors) - used)]
    if wrong:
        raise AdapterError(f"{folder} is damaged:\n  " + "\n  ".join(wrong))
    return config, entries


def read_config(path: Path) -> dict:
    """``dts_config.json``, with all that is read later; raises AdapterError with everything that is wrong with it."""
    try:
        config = json.loads(path.read_text("utf-8"))
        version = config["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path} is damaged: {error!r}") from error
    if version not in READABLE:
        raise AdapterError(f"{path} has format {version}; this version reads {' and '.join(map(str, READABLE))}")
    wrong = check.problems(config)
    if wrong:
        raise AdapterError(f"{path} is damaged: {'; '.join(wrong)}")
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
