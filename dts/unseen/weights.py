"""Weights of a mixture for a task never seen, from what its classes and the seen tasks' classes mean."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dts.adapter import Adapter

from .encoders import Encoder, Source, open_encoder
from .names import is_opaque, readable

K = TypeVar("K")


class OpaqueNames(UserWarning):
    """Class names that say nothing, so that similarities of them mean nothing."""


@dataclass(frozen=True)
class TaskWeights(Mapping[str, float]):
    """{task: gamma}, as ``DTSModel`` takes a mixture, and why.

    weights: only the tasks that are used; similarities: {task: cosine} of all, most similar first;
    nearest: {task: (a class of the new task, the task's class nearest to it, their cosine)}.
    """

    weights: dict[str, float]
    similarities: dict[str, float]
    nearest: dict[str, tuple[str, str, float]]

    def __getitem__(self, task: str) -> float:
        return self.weights[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def rows(self) -> list[dict[str, Any]]:
        """One row a task: task, similarity, weight (0 if unused), and the nearest pair of classes."""
        rows = []
        for task, similarity in self.similarities.items():
            ours, theirs, cosine = self.nearest[task]
            rows.append(
                {
                    "task": task,
                    "similarity": similarity,
                    "weight": self.weights.get(task, 0.0),
                    "class": ours,
                    "nearest": theirs,
                    "nearest_similarity": cosine,
                }
            )
        return rows

    def table(self) -> str:
        """The rows as aligned text."""
        width = max([len(task) for task in self.similarities] + [4])
        lines = [f"{'task':{width}}  similarity  weight  nearest classes"]
        for row in self.rows():
            pair = f"{row['class']} ~ {row['nearest']} ({row['nearest_similarity']:.2f})"
            lines.append(f"{row['task']:{width}}  {row['similarity']:10.3f}  {row['weight']:6.3f}  {pair}")
        return "\n".join(lines)


def task_weights(
    classes: str | list[str],
    adapters: Mapping[str, Any],
    encoder: Source = "default",
    temperature: float | None = None,
    top_k: int | None = None,
    floor: float | None = None,
    negative: bool = False,
) -> TaskWeights:
    """Mixture weights gamma_n for a new task.

    classes: its class names, or a description (a string); adapters: {task: Adapter, or an adapter's folder, or class
    names, or a description}; encoder: see `open_encoder`.

    E of a task is the mean of its classes' embeddings, each normalised first, normalised again; a description is
    embedded as it is. With c_n = cos(E_new, E_n):

        default            gamma_n = c_n / sum_k |c_k|     (the published formula; it has no |.|, nor need of one where
                                                            all are positive)
        temperature=T      gamma_n = softmax_n(c_n / T)
        top_k, floor       only the k most similar, only those with c_n >= floor, before normalising
        negative=False     tasks with c_n <= 0 get no weight

    Where no task remains the mixture is empty: the base alone. Warns (`OpaqueNames`) where names say nothing.
    """
    encode = open_encoder(encoder)
    if not adapters:
        raise ValueError("no adapters to mix")
    if temperature is not None and not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a number above 0, not {temperature}")
    if floor is not None and math.isnan(floor):
        raise ValueError("floor must be a similarity, -1 to 1, not nan")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be a number of tasks, 1 or more, not {top_k}")
    known = {task: _texts(task, source) for task, source in adapters.items()}
    new = _clean("the new task", classes)
    embedded = _embed({**{("task", t): texts for t, texts in known.items()}, ("new", ""): new}, encode)
    target = embedded.pop(("new", ""))
    cosines, nearest = {}, {}
    for (_, task), vectors in embedded.items():
        cosines[task] = float(centre(target) @ centre(vectors))
        pairs = target @ vectors.T
        i, j = divmod(int(pairs.argmax()), pairs.shape[1])
        nearest[task] = (new[i], known[task][j], float(pairs[i, j]))
    cosines = dict(sorted(cosines.items(), key=lambda item: -item[1]))
    return TaskWeights(_normalised(cosines, temperature, top_k, floor, negative), cosines, nearest)


def centre(vectors: Tensor) -> Tensor:
    """Mean direction of unit vectors [classes, d]: a unit vector [d]."""
    return torch.nn.functional.normalize(vectors.mean(0), dim=0)


def task_embeddings(adapters: Mapping[str, Any], encoder: Source = "default") -> dict[str, Tensor]:
    """{task: unit vectors [classes, d]} of the class names (or description) of every task."""
    encode = open_encoder(encoder)
    return _embed({task: _texts(task, source) for task, source in adapters.items()}, encode)


def _normalised(
    cosines: Mapping[str, float], temperature: float | None, top_k: int | None, floor: float | None, negative: bool
) -> dict[str, float]:
    """The weights of the tasks that are used; cosines: the most similar first."""
    allowed = [(task, c) for task, c in cosines.items() if (negative or c > 0) and (floor is None or c >= floor)]
    kept = dict(allowed[:top_k])
    if temperature is not None:
        values = torch.tensor(list(kept.values()), dtype=torch.float64)
        if not len(values):
            return {}
        return dict(zip(kept, torch.softmax((values - values.max()) / temperature, 0).tolist()))
    total = sum(abs(c) for c in kept.values())
    return {task: c / total for task, c in kept.items() if total}


def _embed(texts: Mapping[K, list[str]], encode: Encoder) -> dict[K, Tensor]:
    """All texts in one call of the encoder; unit vectors [texts, d] a key."""
    flat = [text for group in texts.values() for text in group]
    vectors = encode(flat)
    if vectors.dim() != 2 or len(vectors) != len(flat) or not vectors.isfinite().all():
        raise ValueError(
            f"the encoder gave {list(vectors.shape)} for {len(flat)} texts; it must give finite vectors "
            f"[{len(flat)}, dimensions]"
        )
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    return dict(zip(texts, vectors.split([len(group) for group in texts.values()])))


def _texts(task: str, source: Any) -> list[str]:
    """What is to be embedded of a seen task: its class names, else its description, else its name."""
    if isinstance(source, Path) or isinstance(source, str) and (Path(source) / "dts_config.json").is_file():
        source = Adapter.load(source)
    if isinstance(source, (str, list, tuple)):
        return _clean(task, source)
    named, described = source.class_names, source.description
    if named and not all(is_opaque(name) for name in named):
        return _clean(task, list(named))
    if described:
        return [described]
    if named:
        return _clean(task, list(named))
    warnings.warn(
        f"task {task} has neither class names nor a description: only its name is compared", OpaqueNames, stacklevel=3
    )
    return [readable(task)]


def _clean(task: str, classes: str | Sequence[str]) -> list[str]:
    """Readable texts; warns where class names are opaque."""
    if isinstance(classes, str):
        if not classes.strip():
            raise ValueError(f"{task}: the description is empty")
        return [classes]
    if not len(classes):
        raise ValueError(f"{task}: no class names")
    opaque = [name for name in map(str, classes) if is_opaque(name)]
    if opaque:
        shown = ", ".join(repr(name) for name in opaque[:5])
        warnings.warn(
            f"{task}: {len(opaque)} of {len(classes)} class names say nothing ({shown}): similarities of "
            "them mean nothing; give words or a description",
            OpaqueNames,
            stacklevel=3,
        )
    return [str(name) if is_opaque(str(name)) else readable(str(name)) for name in classes]
