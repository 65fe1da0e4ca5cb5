"""Finished tensors of a run that may be interrupted."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path

from torch import Tensor

from dts.adapter.entries import Entry
from dts.adapter.format import entry_from, entry_row, entry_tensors
from dts.adapter.plan import Compressible, Matrix
from dts.checkpoint import Damaged, SafetensorsFile, write_safetensors
from dts.checkpoint.safetensors_file import layout_of
from dts.files import OVERTAKEN, Building, write_text

OPTIONS = "options.json"
AFRESH = "start again without resume, or with what it had"
LONGEST = 180  # characters of a tensor's name in a file's


@cache
def code_digest() -> str:
    """16 hex digits over the code that makes entries: a version number does not change with every line."""
    here = Path(__file__).parent
    total = hashlib.sha256()
    for file in sorted([*here.glob("*.py"), *(here.parent / "codec").glob("*.py")]):
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


class Work:
    """Entries and spectra by tensor: in memory, or in files of a folder so that a run can be continued.

    place: where they are kept; files of another run that may lie there are not taken, and made again.
    options: everything the result depends on; raises ValueError if those of the run to be continued were others.
    """

    def __init__(self, place: Building | None, options: dict, config: dict):
        self.place, self.config = place, config
        self.folder = None if place is None else place.work
        self._entries: dict[str, tuple[list[int], Entry]] = {}
        if place is None:
            return
        file, options = self.folder / OPTIONS, options | {"run": place.run}
        if not file.is_file():
            write_text(file, json.dumps(options))
            return
        try:
            theirs = json.loads(file.read_text("utf-8"))
            theirs.setdefault("run", place.run)  # version 0.1.0 had none; its package is another one
        except (ValueError, AttributeError):
            raise ValueError(f"the notes of the interrupted run are damaged: {AFRESH}") from None
        wrong = [
            f"{k}: {theirs.get(k)!r} then, {options.get(k)!r} now"
            for k in sorted({*theirs, *options})
            if theirs.get(k) != options.get(k)
        ]
        if wrong:
            raise ValueError(
                "the interrupted run was another one, and cannot be continued: "
                f"{'; '.join(wrong)}.  {AFRESH.capitalize()}"
            )

    def entry(self, name: str, ranks: list[int]) -> Entry | None:
        """The finished entry of these ranks, if there is one."""
        if self.folder is None:
            found = self._entries.get(name)
            return found[1] if found is not None and found[0] == ranks else None
        found = self._read("entry", name)
        if found is None or json.loads(found.metadata["ranks"]) != ranks:
            return None
        load = lambda key: found.load(key) if key in found.tensors else None  # noqa: E731
        return entry_from(name, json.loads(found.metadata["row"]), self.config, load)

    def keep(self, entry: Entry, ranks: list[int]) -> Entry:
        """Stores a finished entry; gives it back, from the file if there is one."""
        if self.folder is None:
            self._entries[entry.name] = ranks, entry
            return entry
        tensors = entry_tensors(entry)
        row = entry_row(entry, None, None, layout_of(tensors.items()))
        self._write("entry", entry.name, tensors, {"row": json.dumps(row), "ranks": json.dumps(ranks)})
        found = self.entry(entry.name, ranks)
        if found is None:
            raise FileExistsError(OVERTAKEN.format(self.place.out))
        return found

    def spectra(self, name: str) -> list[Matrix] | None:
        """The measured matrices of a tensor, if there are any."""
        found = self._read("spectrum", name) if self.folder is not None else None
        if found is None:
            return None
        load = lambda key: found.load(key) if key in found.tensors else None  # noqa: E731
        return [
            Matrix(tuple(shape), load(f"{i}.rows"), load(f"{i}.columns"), norm, load(f"{i}.singular"))
            for i, (shape, norm) in enumerate(json.loads(found.metadata["matrices"]))
        ]

    def keep_spectra(self, plan: Compressible) -> None:
        if self.folder is None:
            return
        tensors = {
            f"{i}.{key}": getattr(m, key)
            for i, m in enumerate(plan.matrices)
            for key in ("rows", "columns", "singular")
            if getattr(m, key) is not None
        }
        about = json.dumps([[m.shape, m.norm] for m in plan.matrices])
        self._write("spectrum", plan.pair.name, tensors, {"matrices": about})

    def clear(self) -> None:
        if self.place is not None:
            self.place.clear()

    def _path(self, stage: str, name: str) -> Path:
        plain = name.replace("/", "_")
        if plain != name or len(plain) > LONGEST:  # other names must not be this one, and no file's is longer than 255
            plain = f"{plain[:LONGEST]}.{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return self.folder / f"{stage}.{plain}.safetensors"

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
