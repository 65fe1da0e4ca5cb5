"""A base whose weights are pages of a file: what is written into the file is what its tasks answer with."""

from __future__ import annotations

from torch import nn

from dts.files import Mapped, mapped_files


class BaseAltered(ValueError):
    """What the model's weights are pages of was written to."""


def mapped_of(model: nn.Module) -> Mapped:
    """The files that a model's weights are pages of, watched from now on."""
    return Mapped(mapped_files(_addresses(model)))


def refuse_altered(mapped: Mapped, model: nn.Module) -> Mapped:
    """Raises BaseAltered where one of the files was written to; returns what is to be watched from now on.

    A model that was moved, or cast, since has its weights in memory of its own, and goes on.
    """
    altered = set(mapped.altered())
    if not altered:
        return mapped
    files = mapped_files(_addresses(model))
    if wrong := sorted(altered & {path for path, _ in files}):
        raise BaseAltered(
            f"{', '.join(wrong)}: the base's weights are pages of this file, which was written to, so that they are "
            "others than when the model was loaded: load it again, and write new weights beside the file and rename "
            "them to it"
        )
    return Mapped(files)


def _addresses(model: nn.Module) -> list[int]:
    """Where in this machine's memory its weights are."""
    found = []
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            try:
                if tensor is not None and tensor.device.type == "cpu":
                    found.append(tensor.data_ptr())
            except (RuntimeError, NotImplementedError):  # of a class without memory of its own
                continue
    return found
