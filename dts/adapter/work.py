"""Finished tensors of a run that may be interrupted."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from dts.adapter.entries import Entry
from dts.adapter.matrix import Matrix
from dts.adapter.plan import Compressible
from dts.adapter.rows import Load, entry_from, entry_row, entry_tensors
from dts.adapter.uneven import Leading, Uneven
from dts.checkpoint import Damaged, SafetensorsFile, write_safetensors
from dts.checkpoint.safetensors_file import layout_of
from dts.files import OVERTAKEN, Building, write_text
from dts.shapes import is_of_tokens

OPTIONS = "options.json"
AFRESH = "start again without resume, or with what it had"
LONGEST = 180  # characters of a tensor's name in a file's


class Work:
    """Entries by tensor, and spectra, in memory."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[list[int], Entry]] = {}

    def entry(self, name: str, ranks: list[int]) -> Entry | None:
        """The finished entry of these ranks, if there is one."""
        ranks_of_found, found = self._entries.get(name, (None, None))
        return found if ranks_of_found == ranks else None

    def keep(self, entry: Entry, ranks: list[int]) -> Entry:
        """Stores a finished entry; gives it back, from the file if there is one."""
        self._entries[entry.name] = ranks, entry
        return entry

    def spectra(self, name: str) -> list[Matrix] | None:
        """The measured matrices of a tensor, if they were kept."""
        return None

    def keep_spectra(self, plan: Compressible) -> None:
        """Stores the measured matrices of a tensor, where a later run can find them."""

    def clear(self) -> None:
        """Removes what is kept in files."""


class KeptWork(Work):
    """The same in files of a folder, so that a run can be continued.

    place: where they are kept; files of another run that may lie there are not taken, and made again.
    options: everything the result depends on; raises ValueError if those of the run to be continued were others.
    """

    def __init__(self, place: Building, options: dict, config: dict):
        super().__init__()
        self.place, self.config = place, config
        _compare(place.work / OPTIONS, options | {"run": place.run})

    def entry(self, name: str, ranks: list[int]) -> Entry | None:
        found = self._read("entry", name)
        if found is None or json.loads(found.metadata["ranks"]) != ranks:
            return None
        return entry_from(name, json.loads(found.metadata["row"]), self.config, _Kept(found))

    def keep(self, entry: Entry, ranks: list[int]) -> Entry:
        tensors = entry_tensors(entry)
        row = entry_row(entry, None, None, layout_of(tensors.items()))
        self._write("entry", entry.name, tensors, {"row": json.dumps(row), "ranks": json.dumps(ranks)})
        found = self.entry(entry.name, ranks)
        if found is None:
            raise FileExistsError(OVERTAKEN.format(self.place.out))
        return found

    def spectra(self, name: str) -> list[Matrix] | None:
        found = self._read("spectrum", name)
        if found is None:
            return None
        load = _Kept(found)
        return [
            Matrix(
                (m, n),
                load(f"{i}.rows"),
                load(f"{i}.columns"),
                norm,
                load(f"{i}.singular"),
                measured,
                _uneven(i, table, load),
                is_of_tokens(name, (m, n)),
            )
            for i, ((m, n), norm, measured, table) in enumerate(json.loads(found.metadata["matrices"]))
        ]

    def keep_spectra(self, plan: Compressible) -> None:
        tensors = {
            f"{i}.{key}": getattr(m, key)
            for i, m in enumerate(plan.matrices)
            for key in ("rows", "columns", "singular")
            if getattr(m, key) is not None
        }
        for i, table in enumerate(m.uneven for m in plan.matrices):
            if table is not None:
                tensors[f"{i}.order"] = table.order
                tensors |= {f"{i}.singular{k}": choice.singular for k, choice in enumerate(table.choices)}
        about = json.dumps([[m.shape, m.norm, m.measured, _about(m.uneven)] for m in plan.matrices])
        self._write("spectrum", plan.name, tensors, {"matrices": about})

    def clear(self) -> None:
        self.place.clear()

    def _path(self, stage: str, name: str) -> Path:
        plain = name.replace("/", "_")
        if plain != name or len(plain) > LONGEST:  # other names must not be this one, and no file's is longer than 255
            plain = f"{plain[:LONGEST]}.{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return self.place.work / f"{stage}.{plain}.safetensors"

    def _read(self, stage: str, name: str) -> SafetensorsFile | None:
        path = self._path(stage, name)
        try:
            found = SafetensorsFile(path) if path.is_file() else None
            return found if found is not None and found.metadata.get("run") == self.place.run else None
        except Damaged:  # cut off with the run that wrote it: made again
            return None

    def _write(self, stage: str, name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        path = self._path(stage, name)
        write_safetensors(
            path.with_suffix(".new"),
            layout_of(tensors.items()),
            tensors.__getitem__,
            metadata | {"run": self.place.run},
        )
        os.replace(path.with_suffix(".new"), path)


def work_of(place: Building | None, options: dict, config: dict) -> Work:
    """In memory where nothing is built."""
    return Work() if place is None else KeptWork(place, options, config)


def _compare(file: Path, options: dict) -> None:
    """Notes the options of a run, or compares them with those that an interrupted one noted; raises ValueError."""
    if not file.is_file():
        write_text(file, json.dumps(options))
        return
    try:
        theirs = json.loads(file.read_text("utf-8"))
        theirs.setdefault("run", options["run"])  # version 0.1.0 had none; its package is another one
    except (ValueError, AttributeError):
        raise ValueError(f"the notes of the interrupted run are damaged: {AFRESH}") from None
    wrong = [
        f"{k}: {theirs.get(k)!r} then, {options.get(k)!r} now"
        for k in sorted({*theirs, *options})
        if theirs.get(k) != options.get(k)
    ]
    if wrong:
        raise ValueError(
            f"the interrupted run was another one, and cannot be continued: {'; '.join(wrong)}.  {AFRESH.capitalize()}"
        )


def _about(table: Uneven | None) -> list | None:
    """What the tensors of a table do not say."""
    return None if table is None else [table.moving, [[choice.count, choice.energy] for choice in table.choices]]


def _uneven(place: int, about: list | None, load: Callable[[str], Tensor | None]) -> Uneven | None:
    """The inverse; place: the matrix's among those of its tensor."""
    if about is None:
        return None
    moving, choices = about
    stored = [load(f"{place}.{key}") for key in ("order", *[f"singular{k}" for k in range(len(choices))])]
    order, *singular = [tensor for tensor in stored if tensor is not None]
    return Uneven(order, moving, tuple(Leading(n, e, own) for (n, e), own in zip(choices, singular, strict=True)))


class _Kept(Load):
    def __init__(self, file: SafetensorsFile):
        self.file = file

    def __call__(self, key: str) -> Tensor | None:
        return self.file.load(key) if key in self.file.tensors else None
