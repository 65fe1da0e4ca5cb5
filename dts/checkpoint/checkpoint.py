"""Models on disk or in memory, read one tensor at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lazy:
    """One tensor that has not been read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]
    release: Callable[[], None] | None = None


@dataclass
class Checkpoint:
    """A model as named tensors, each read when asked for.

    tied: name -> the first name that shares its storage;  config: ``config.json`` as a dict, if there is one;
    folder: where tokenizer and configuration lie, if it is a folder;  revision: of a hub id.
    parts: of a sentence-transformers folder, the folder of each module with weights -> what its tensors' names start
        with here: {"": "", "2_Dense": "2_Dense."}; the first keeps the names it has in its file (see `part_of`);
    files: of such a folder, the small files that make it one (modules.json, each module's config), by their places.
    notes: what lies beside the weights that were read and was not;
    quantised: the method, of a quantised model that was opened as the numbers it computes with.
    """

    source: str
    tensors: dict[str, Lazy] = field(repr=False)
    tied: dict[str, str] = field(default_factory=dict)
    config: dict | None = field(default=None, repr=False)
    folder: Path | None = None
    revision: str | None = None
    parts: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict, repr=False)
    notes: list[str] = field(default_factory=list)
    quantised: str | None = None

    @property
    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def load(self, name: str) -> Tensor:
        """The tensor, on the CPU.  It may be a view on a mapped file or on the model itself: do not write to it."""
        return self.tensors[name].load()

    def release(self, name: str) -> None:
        """Gives back the memory of a tensor that was read from a mapped file, after use; it can be loaded again."""
        release = self.tensors[name].release
        if release is not None:
            release()

    @property
    def parameters(self) -> int:
        """Elements of all floating-point tensors, tied ones once."""
        return sum(
            torch.Size(t.shape).numel()
            for name, t in self.tensors.items()
            if t.dtype.is_floating_point and name not in self.tied
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in their stored dtypes, tied ones once."""
        return sum(
            torch.Size(t.shape).numel() * t.dtype.itemsize for name, t in self.tensors.items() if name not in self.tied
        )

    @property
    def main_dtype(self) -> torch.dtype:
        """The floating-point dtype most elements have (float32 if there are none)."""
        counts: dict[torch.dtype, int] = {}
        for t in self.tensors.values():
            if t.dtype.is_floating_point:
                counts[t.dtype] = counts.get(t.dtype, 0) + torch.Size(t.shape).numel()
        return max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32

    def part_of(self, name: str) -> tuple[str, str]:
        """(folder of the module, name in that module's own file) of a tensor; ("", name) of a model without parts."""
        for folder, prefix in self.parts.items():
            if prefix and name.startswith(prefix):
                return folder, name[len(prefix) :]
        return next((folder for folder, prefix in self.parts.items() if not prefix), ""), name


def dtype_note(base: Checkpoint, finetuned: Checkpoint) -> str | None:
    """What to know where the two models are stored in other dtypes; None where they are not."""
    ours, theirs = (str(model.main_dtype).removeprefix("torch.") for model in (finetuned, base))
    if ours == theirs:
        return None
    narrower = min((base, finetuned), key=lambda model: model.main_dtype.itemsize)
    which = "base" if narrower is base else "fine-tune"
    return (
        f"the base is {theirs} and the fine-tune {ours}: their difference also holds what rounding the {which} "
        f"to {theirs if narrower is base else ours} changed"
    )
