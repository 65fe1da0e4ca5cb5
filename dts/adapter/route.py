"""What a router knows of a task's inputs: a few numbers in ``dts_route.safetensors`` beside an adapter's other files.

Optional: a folder without it is whole, and readers that do not know it leave it alone.  docs/format.md has every key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dts.adapter.digests import canonical
from dts.adapter.errors import AdapterError
from dts.checkpoint import Damaged, SafetensorsFile, write_safetensors
from dts.checkpoint.safetensors_file import NAMES, header_bytes, layout_of, tensor_bytes
from dts.files import within
from dts.values import line
from dts.warn import warn

ROUTE = "dts_route.safetensors"
FORMAT = "1"
# Directions in which a task's inputs vary most, at least and at most, and the examples that each takes: of fewer its
# noise costs more than it tells.  Chosen on tasks that are in no table (benchmarks/quality/MERGING.md).
DIRECTIONS, EXAMPLES_A_DIRECTION = (4, 16), 16
FEWEST = 4  # inputs, of which a variance means something
LARGEST_HEADER = 1 << 14  # bytes
MOST_DIRECTIONS = 64
MOST_NUMBERS = 1 << 20  # of an input: no layer is as wide, and a file of 70 MiB the largest that is read
KEYS = ("adapter", "examples", "format", "layer", "sha256")  # of the metadata
TENSORS = {  # name -> dimensions, the dtypes it may have
    "deviation": (1, (torch.bfloat16,)),
    "loadings": (2, (torch.float8_e4m3fn,)),
    "mean": (1, (torch.float16, torch.float32)),
}


@dataclass(frozen=True)
class InputStatistics:
    """What a layer of the base is given where the inputs are a task's: of one vector of n numbers an input.

    layer: name of the layer's weight in the base's model;  examples: of how many inputs;  mean: float16 or 32 [n];
    deviation: bfloat16 [n], the standard one;  loadings: float8_e4m3fn [r, n], the principal directions of the
    covariance in standard deviations: it is diag(deviation) (loadingsᵀ loadings + the rest's diagonal) diag(deviation).
    """

    layer: str
    examples: int
    mean: Tensor = field(repr=False)
    deviation: Tensor = field(repr=False)
    loadings: Tensor = field(repr=False)

    @classmethod
    def of(cls, layer: str, pooled: Tensor) -> InputStatistics:
        """pooled: [examples, n], an input a row.  Raises ValueError for fewer than `FEWEST`, more than `MOST_NUMBERS`
        of each, NaN, or inputs that are all the same."""
        if pooled.ndim != 2 or len(pooled) < FEWEST:
            raise ValueError(f"{len(pooled)} inputs tell too little of a task: give {FEWEST} or more, 64 do well")
        if pooled.shape[1] > MOST_NUMBERS:
            raise ValueError(f"{layer} has {pooled.shape[1]:,} numbers an input: {MOST_NUMBERS:,} are the most")
        if not pooled.isfinite().all():
            raise ValueError(f"the inputs of {layer} are not all finite numbers")
        pooled = pooled.double().cpu()
        mean = pooled.mean(0)
        centred = (pooled - mean) / (len(pooled) - 1) ** 0.5
        if not centred.any():
            raise ValueError("all inputs look the same to the model: give different ones")
        _, deviations, rows = torch.linalg.svd(centred, full_matrices=False)
        deviation = centred.square().sum(0).sqrt()
        kept = min(max(len(pooled) // EXAMPLES_A_DIRECTION, DIRECTIONS[0]), DIRECTIONS[1])
        loadings = (deviations[:, None] * rows)[:kept] / deviation.clamp(min=torch.finfo(torch.float64).tiny)
        half = mean.half()
        near = (half.double() - mean).square().sum() <= centred.square().sum() / 1000  # not of inf
        parts = half if near else mean.float(), deviation.bfloat16(), loadings.float().to(torch.float8_e4m3fn)
        return cls(layer, len(pooled), *parts)

    @property
    def directions(self) -> Tensor:
        """float64 [r, n]: the principal directions of the covariance, each as long as its standard deviation."""
        return self.loadings.double() * self.deviation.double()

    @property
    def left(self) -> Tensor:
        """float64 [n]: the variance that the directions leave."""
        return (self.deviation.double().square() - self.directions.square().sum(0)).clamp(min=0)

    @property
    def width(self) -> int:
        return self.mean.shape[0]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in TENSORS}

    @cached_property
    def digest(self) -> str:
        """16 hex digits over all that it says."""
        total = hashlib.sha256(canonical([self.layer, self.examples]))
        for name, tensor in self.tensors.items():
            total.update(canonical([name, NAMES[tensor.dtype], list(tensor.shape)]))
            total.update(tensor_bytes(tensor))
        return total.hexdigest()[:16]

    @property
    def nbytes(self) -> int:
        """Of its file."""
        start, _ = header_bytes(layout_of(self.tensors.items()), self._metadata("0" * 16))
        return len(start) + sum(tensor.nbytes for tensor in self.tensors.values())

    def write(self, folder: Path, adapter: str) -> None:
        """adapter: the ``sha256`` of the configuration beside it."""
        layout = layout_of(self.tensors.items())
        write_safetensors(folder / ROUTE, layout, self.tensors.__getitem__, self._metadata(adapter))

    def _metadata(self, adapter: str) -> dict[str, str]:
        values = {"layer": self.layer, "examples": str(self.examples), "sha256": self.digest}
        return {"format": FORMAT, "adapter": adapter} | values


def read_route(folder: Path, adapter: str | None, verify: bool = True) -> InputStatistics | None:
    """What lies in an adapter's folder; None where there is nothing, and (with a warning) what a newer version wrote.

    adapter: the ``sha256`` of the configuration beside it, None where it has none;  verify: compare the digest.
    Raises AdapterError that says what is wrong and what to do.
    """
    path = folder / ROUTE
    if not path.is_file():
        return None

    def wrong(what: str) -> AdapterError:
        return AdapterError(f"{path} {what}; dts route writes it anew, and without it the adapter is whole")

    if not within(folder, path):
        raise wrong("is a link to a place outside of the folder, which is not followed")
    try:
        file = SafetensorsFile(path, mapped=False, largest_header=LARGEST_HEADER)
        about = file.metadata
        if about.get("format") not in (None, FORMAT):
            warn(f"{path} is of a newer version of dts, and is not used to choose tasks")
            return None
        if problem := _problem(about, {name: (t.dtype, t.shape) for name, t in file.tensors.items()}):
            raise wrong(f"is damaged: {problem}")
        found = InputStatistics(about["layer"], int(about["examples"]), **{name: file.load(name) for name in TENSORS})
    except Damaged as error:
        raise wrong(f"is damaged: {error}") from None
    if not all(tensor.float().isfinite().all() for tensor in found.tensors.values()):
        raise wrong("is damaged: it has numbers that are not finite")
    if (found.deviation < 0).any() or not found.deviation.any():
        raise wrong("is damaged: its deviations are below zero, or all zero")
    if verify and found.digest != about["sha256"]:
        raise wrong("was altered")
    if verify and about["adapter"] != adapter:
        raise wrong("is of another adapter")
    return found


def _problem(about: dict[str, str], tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> str | None:
    """What is wrong with the header."""
    if sorted(about) != list(KEYS):
        return f"its metadata has {', '.join(sorted(about)) or 'nothing'} instead of {', '.join(KEYS)}"
    if not line(about["layer"]):
        return "its layer is no name"
    count = about["examples"]
    if not (count.isascii() and count.isdigit() and len(count) < 16 and int(count) >= FEWEST):
        return f"it says that it was made from {count!r:.40} inputs"
    if sorted(tensors) != list(TENSORS):
        return f"it holds {', '.join(sorted(tensors)) or 'nothing'} instead of {', '.join(TENSORS)}"
    for name, (dtype, shape) in tensors.items():
        dimensions, dtypes = TENSORS[name]
        if dtype not in dtypes or len(shape) != dimensions or 0 in shape:
            return f"its {name} is {NAMES[dtype]} {list(shape)}"
    if len({shape[-1] for _, shape in tensors.values()}) > 1 or tensors["loadings"][1][0] > MOST_DIRECTIONS:
        return "its tensors are not of one width"
    if (width := tensors["mean"][1][0]) > MOST_NUMBERS:
        return f"its tensors are {width:,} wide, more than the {MOST_NUMBERS:,} that are read"
    return None
