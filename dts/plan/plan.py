"""The plan: a table of what takes memory and where, whether it keeps to a limit, and what is not known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch

from dts.adapter import Adapter, AdapterError
from dts.adapter.folder import read_layout
from dts.adapter.sizes import HEADER_BYTES
from dts.adapter.text import as_dtype
from dts.checkpoint import Checkpoint, open_stored
from dts.checkpoint.safetensors_file import Layout
from dts.devices import device_named
from dts.integrations.positions import positions
from dts.nn.library import library
from dts.nn.sizes import OBJECTS, exact_tensors, task_bytes
from dts.plan.base import base_size, quantised_size
from dts.plan.passes import NotFollowed, pass_size
from dts.plan.process import settled
from dts.sizes import bytes_text, parse_bytes

Where = Literal["resident", "mapped", "on disk"]
Memory = int | str

# what a first pass leaves behind in the libraries (threads' stacks, kernels made for its shapes, pages of code), and
# what malloc cannot give back.  *Measured* by `python -m benchmarks.resident`: 8 to 14 MB
WORK = 12_000_000

LENGTH = 128  # tokens
MOST = 2**32  # tokens of a batch


class TooSmall(ValueError):
    """The limit is below the least that would do.  least: bytes."""

    def __init__(self, message: str, least: int):
        super().__init__(message)
        self.least = least


@dataclass(frozen=True)
class Row:
    """what: process, base, heads, buffers, activations, cache, work, or a task's name;  note: in words."""

    what: str
    nbytes: int
    where: Where
    note: str = ""
    task: bool = False


@dataclass
class Plan:
    """limit: bytes, None: no bound;  batch, length: rows, and tokens of each;  rows: of the table;
    unknown: what is not counted, and why."""

    model: str
    limit: int | None
    batch: int
    length: int
    device: str
    dtype: str
    rows: list[Row]
    unknown: list[str] = field(default_factory=list)
    loading: int = 0  # bytes in memory while the base is loaded, before there is any task

    @property
    def fixed(self) -> int:
        """Bytes of all but tasks."""
        return sum(row.nbytes for row in self.rows if not row.task)

    @property
    def total(self) -> int:
        """Bytes of all that is in memory at once, mapped pages counted as if all were there; with a limit tasks may
        come and go within it, see `room`."""
        return sum(row.nbytes for row in self.rows if row.where != "on disk")

    @property
    def room(self) -> int | None:
        """Bytes for tasks within the limit."""
        return None if self.limit is None else self.limit - self.fixed

    @property
    def resident(self) -> list[str]:
        """Tasks that are loaded from the start."""
        return [row.what for row in self.rows if row.task and row.where == "resident"]

    @property
    def at_most(self) -> int:
        """The most that is in memory at any time: the limit, once tasks that are on disk were asked for."""
        waiting = any(row.where == "on disk" for row in self.rows)
        return self.limit if waiting and self.limit is not None else max(self.total, self.loading)

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "memory": self.limit,
            "batch": self.batch,
            "length": self.length,
            "device": self.device,
            "dtype": self.dtype,
            "rows": [
                {"what": r.what, "bytes": r.nbytes, "where": r.where, "note": r.note, "task": r.task} for r in self.rows
            ],
            "total": self.total,
            "room": self.room,
            "loading": self.loading,
            "unknown": self.unknown,
        }

    def __str__(self) -> str:
        """The table."""
        cells: list[tuple[str, str, str, str]] = [
            (row.what, bytes_text(row.nbytes), row.where, row.note) for row in self.rows
        ]
        cells.append(("in memory", bytes_text(self.total), "", self.against))
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        head = f"{self.model}, {self.dtype} on {self.device}, {self.batch} rows of {self.length} tokens"
        lines = [
            f"  {what:<{widths[0]}}  {size:>{widths[1]}}  {where:<{widths[2]}}  {note}".rstrip()
            for what, size, where, note in cells
        ]
        return "\n".join([head, *lines, *[f"  not counted: {why}" for why in self.unknown]])

    @property
    def against(self) -> str:
        """The limit, in words."""
        return "" if self.limit is None else f"of {bytes_text(self.limit)} that are allowed"


@dataclass(frozen=True)
class _Task:
    name: str
    nbytes: int
    note: str


def plan(
    model: str | Path,
    adapters: Mapping[str, str | Path | Adapter],
    memory: Memory | None = None,
    *,
    batch: int = 1,
    length: int | None = None,
    device: str | torch.device = "cpu",
    pin: Sequence[str] = (),
    prefix: float | None = None,
    **options: Any,
) -> Plan:
    """What a base and tasks take of the memory of ``device``, from headers and configs: no weight is loaded.

    memory: the limit, bytes or "1GiB"; with one, tasks beyond it stay on disk, and TooSmall is raised where base,
        pass, pinned and largest task do not fit: it says the smallest limit that would do.  On a CPU it is of the whole
        process, mapped pages included; on another device of what lies there.
    batch, length: of a pass; of a model that generates, prompt and answer; by default 128, or as many as the model has
        positions for where these are fewer.  pin: tasks that never go.
    prefix: take so much of each adapter only, a fraction of the base in fp32 as `Adapter.load` has it.
    options: for transformers' ``from_pretrained``; dtype: default as most of the checkpoint is stored.
    Raises ValueError that names every adapter that cannot be used, and for numbers that make no sense.
    """
    made, _ = planned(
        model, adapters, memory, batch=batch, length=length, device=device, pin=pin, prefix=prefix, **options
    )
    return made


def planned(
    model: str | Path,
    adapters: Mapping[str, str | Path | Adapter],
    memory: Memory | None = None,
    *,
    batch: int = 1,
    length: int | None = None,
    device: str | torch.device = "cpu",
    pin: Sequence[str] = (),
    prefix: float | None = None,
    **options: Any,
) -> tuple[Plan, dict[str, Adapter]]:
    """`plan`, and the adapters without their entries, which were read for it."""
    limit = parse_bytes(memory, "memory") if isinstance(memory, str) else memory
    _check(limit, batch, length, device, prefix, pin, adapters)
    place = device_named(device, here=False)
    found = _layouts(adapters)
    about = {name: adapter for name, (adapter, _) in found.items()}
    checkpoint, quantised = open_stored(model, **{key: value for key, value in options.items() if value is not None})
    dtype = as_dtype(options.get("dtype")) or (_computed(checkpoint) if quantised else checkpoint.main_dtype)
    empty, _ = library().empty_base(model, list(about.values()), **options | {"dtype": dtype})
    most = positions(empty)
    if length is not None and most is not None and length > most:
        raise ValueError(f"a row of {length} tokens is longer than the {most} that {model} takes")
    length = length or min(LENGTH, most or LENGTH)
    unknown: list[str] = []
    rows: list[Row] = []
    if place.type == "cpu":
        here = settled()
        if here is None:
            unknown.append("Python, PyTorch and other libraries: this system does not say what they take")
        else:
            rows.append(Row("process", here, "resident", "Python, PyTorch and libraries, as measured now"))
    else:
        unknown.append(f"what the driver of {place} and its kernels take, and the process on the host")
    if quantised:
        size = quantised_size(empty, checkpoint)
        unknown.append("what the library that quantised the base takes while it computes with codes")
    else:
        size = base_size(empty, checkpoint, dtype, place.type == "cpu")
    if size.mapped:
        rows.append(Row("base", size.mapped, "mapped", "pages of its file, when they are used"))
    if size.copied:
        note = f"read from {bytes_text(size.converted)} of other pages, given back then" if size.converted else ""
        note = "codes and scales as they are stored" if quantised else note
        rows.append(Row("base, copied" if size.mapped else "base", size.copied, "resident", note))
    if size.lacking:
        rows.append(Row("heads", size.lacking, "resident", "which the base lacks, random until a task brings its own"))
    if size.buffers:
        rows.append(Row("buffers", size.buffers, "resident"))
    loading = sum(row.nbytes for row in rows) + size.converted + WORK
    try:
        passed = pass_size(empty, batch, length)
        rows.append(Row("activations", passed.activations, "resident", "of a pass at its worst moment"))
        if passed.cache:
            rows.append(Row("cache", passed.cache, "resident", "keys and values of all tokens"))
    except NotFollowed as error:
        unknown.append(f"activations and cache of {type(empty).__name__}: {error}")
    rows.append(Row("work", WORK, "resident", "of kernels and of malloc"))
    tasks = [_task(name, adapter, stored, prefix) for name, (adapter, stored) in found.items()]
    made = Plan(str(model), limit, batch, length, str(place), str(dtype).removeprefix("torch."), rows, unknown, loading)
    made.rows = [*rows, *_placed(made, tasks, set(pin))]
    return made, about


def _computed(stored: Checkpoint) -> torch.dtype:
    """The dtype that a quantised model computes in: as its config says, else as most floats in it are stored."""
    said = (stored.config or {}).get("dtype") or (stored.config or {}).get("torch_dtype")
    floats = Counter[torch.dtype]()
    for lazy in stored.tensors.values():
        if lazy.dtype.is_floating_point and lazy.dtype.itemsize > 1:
            floats[lazy.dtype] += math.prod(lazy.shape)
    return as_dtype(said) or next((dtype for dtype, _ in floats.most_common(1)), torch.float32)


def _check(
    limit: int | None,
    batch: int,
    length: int | None,
    device: str | torch.device,
    prefix: float | None,
    pin: Sequence[str],
    adapters: Mapping[str, Any],
) -> None:
    wrong = []
    if limit is not None and not _whole(limit):
        wrong.append(f"memory is a whole number of bytes or text such as '1GiB', not {limit!r}")
    elif limit is not None and limit <= 0:
        wrong.append(f"memory is {limit} bytes")
    if not _whole(batch) or not (length is None or _whole(length)):
        wrong.append(f"a batch has whole numbers of rows and tokens, not {batch!r} of {length!r}")
    elif batch < 1 or (length is not None and length < 1):
        wrong.append(f"a batch has 1 row of 1 token at least, not {batch} of {length}")
    elif batch * (length or 1) > MOST:
        wrong.append(f"no machine holds a batch of {batch} rows of {length or LENGTH} tokens")
    try:
        device_named(device, here=False)
    except ValueError as error:
        wrong.append(str(error))
    if prefix is not None and not 0 < prefix <= 1:
        wrong.append(f"prefix is a fraction of the base, between 0 and 1, not {prefix}")
    if isinstance(pin, str) or not isinstance(pin, Iterable):
        wrong.append(f"pin is a list of tasks, not {pin!r}")
    elif unknown := [name for name in pin if name not in adapters]:
        wrong.append(f"pinned {unknown} are no tasks; there are {list(adapters)}")
    if limit is None and pin:
        wrong.append("pin says what a limit does not send to disk, and without memory= (--memory) there is no limit")
    if prefix is not None and not adapters:
        wrong.append("prefix is of adapters, and there are none")
    if wrong:
        raise ValueError("; ".join(wrong))


def _whole(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def _layouts(adapters: Mapping[str, str | Path | Adapter]) -> dict[str, tuple[Adapter, Layout]]:
    """Each adapter without its entries, and what it stores."""
    found: dict[str, tuple[Adapter, Layout]] = {}
    wrong: list[str] = []
    for name, given in adapters.items():
        if isinstance(given, Adapter) and given.folder is None:
            wrong.append(f"{name!r}: it is in memory and not on disk: save it")
            continue
        folder = given.folder if isinstance(given, Adapter) else Path(given)
        assert folder is not None
        try:
            config, stored = read_layout(folder)
        except (AdapterError, OSError) as error:
            wrong.append(f"{name!r}: {error}")
            continue
        found[name] = Adapter.of(config, {}, folder, {file: folder / file for file in config["files"]}), stored
    if wrong:
        raise ValueError("\n".join(wrong))
    return found


def _task(name: str, adapter: Adapter, stored: Layout, prefix: float | None) -> _Task:
    nbytes, note = task_bytes(adapter.config, stored), f"whole, {100 * adapter.amr:.2f} % of the base"
    sparse, dense = exact_tensors(adapter.config)
    if sparse or dense:
        note = f"bit for bit, {100 * adapter.amr:.2f} % of the base on disk; "
        note += f"in memory {sparse} tensors as what changed, {dense} whole"
    if (sparse or dense) and prefix is not None and prefix < adapter.amr:
        raise ValueError(f"{name!r} keeps every bit (method exact): no prefix of it is a model, leave prefix out")
    if prefix is None or prefix >= adapter.amr:
        return _Task(name, nbytes, note)
    # the matrices are cut until the folder fits, everything else stays
    factors = sum(
        math.prod(shape) * dtype.itemsize
        for key, (dtype, shape) in stored.items()
        if key.rpartition(".")[2] not in ("delta", "value", "added", "scales", "rows", "columns")
    )
    cut = max(adapter.nbytes - int(prefix * 4 * adapter.config["base"]["parameters"]), 0)
    rows = len(adapter.config["tensors"])
    nbytes = max(nbytes - min(cut, factors), rows * (OBJECTS + HEADER_BYTES))
    return _Task(name, nbytes, f"prefix of {100 * prefix:.2f} %, of {100 * adapter.amr:.2f} %")


def _placed(made: Plan, tasks: list[_Task], pinned: set[str]) -> list[Row]:
    """A row a task: pinned ones first, then as many as fit in the order given; the others wait on disk."""
    if made.limit is None:
        return [Row(task.name, task.nbytes, "resident", task.note, True) for task in tasks]
    kept = sum(task.nbytes for task in tasks if task.name in pinned)
    others = [task.nbytes for task in tasks if task.name not in pinned]
    least = max(made.fixed + kept + max(others, default=0), made.loading)
    if least > made.limit:
        parts = [f"{row.what} {bytes_text(row.nbytes)}" for row in made.rows]
        parts += [f"pinned tasks {bytes_text(kept)}"] * bool(kept)
        parts += [f"the largest {'other ' * bool(kept)}task {bytes_text(max(others))}"] if others else []
        parts += [f"{bytes_text(made.loading)} while the base is loaded"] * (least == made.loading)
        raise TooSmall(
            f"{bytes_text(made.limit)} of memory do not hold {made.model}: the smallest limit that would do is "
            f"{least} bytes ({bytes_text(least)}): {', '.join(parts)}"
            + "".join(f"; not counted: {why}" for why in made.unknown),
            least,
        )
    free = made.limit - made.fixed - kept
    rows = []
    for task in tasks:
        fits = task.name in pinned or task.nbytes <= free
        if task.name not in pinned and fits:
            free -= task.nbytes
        note = task.note + ", pinned" * (task.name in pinned)
        rows.append(Row(task.name, task.nbytes, "resident" if fits else "on disk", note, True))
    return rows
