"""Which tensors of a base and its fine-tunes are merged, and their values, one tensor at a time."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dts.checkpoint import Checkpoint, Mismatch, open_checkpoint, pair

from .tensor import TensorInfo

# classification heads of transformers: of the same shape in two fine-tunes by chance, never to be averaged
HEADS = r"(^|\.)(classifier|pre_classifier|classification_head|score|qa_outputs|summary|logits_proj)\."


@dataclass
class Sources:
    """The models to merge, aligned on the names of ``reference``: the base, or the first model where there is none.

    names: per model, reference name -> its own name; merged: reference names to merge, in the reference's order;
    left: reference name -> why it is not merged (it stays the base's; without a base it is left out).
    """

    reference: Checkpoint
    base: Checkpoint | None
    models: list[Checkpoint]
    names: list[dict[str, str]]
    merged: list[str]
    left: dict[str, str]

    @classmethod
    def open(cls, base, finetunes, exclude=()) -> "Sources":
        """Open and align all models; raises Mismatch with every mismatch of every model."""
        if not finetunes:
            raise ValueError("nothing to merge: give at least one fine-tuned model")
        models = [open_checkpoint(m) for m in finetunes]
        base = None if base is None else open_checkpoint(base)
        reference = models[0] if base is None else base
        names, wrong = [], []
        for model in models:
            try:
                pairs = pair(reference, model).pairs.values()
                same = [p for p in pairs if p.base_name and not (base is None and p.added_rows)]
                names.append({p.base_name: p.name for p in same})
            except Mismatch as error:
                wrong += [f"{model.source}: {line}" for line in error.mismatches]
        if wrong:
            raise Mismatch(f"these models cannot be merged on {reference.source}", wrong)
        patterns = [*exclude, *([HEADS] if base is None else [])]
        merged, left = [], {}
        for name in reference.names:
            why = None
            if name in reference.tied:
                continue
            if not reference.dtype(name).is_floating_point:
                why = f"{str(reference.dtype(name)).removeprefix('torch.')} values are not merged"
            elif any(re.search(p, name) for p in patterns):
                why = "excluded"
            elif lacking := [m.source for m, known in zip(models, names) if name not in known]:
                why = f"not in {', '.join(lacking)}"
            if why:
                left[name] = why
            else:
                merged.append(name)
        if not merged:
            raise ValueError(f"the models have no tensor in common to merge; left out: {left}")
        return cls(reference, base, models, names, merged, left)

    def deltas(self, name: str) -> Tensor:
        """Each model's difference to the base (its value, where there is no base): float32 or float64 [N, *shape]."""
        wide = torch.float64 if self.reference.dtype(name) == torch.float64 else torch.float32
        shape = self.reference.shape(name)
        stacked = torch.empty(len(self.models), *shape, dtype=wide)
        for row, model, known in zip(stacked, self.models, self.names):
            value = model.load(known[name])
            row.copy_(value[: shape[0]] if shape else value)  # rows added to the vocabulary are the fine-tune's own
            model.release(known[name])
        return stacked if self.base is None else stacked.sub_(self.base.load(name))

    def stream(self, seed: int) -> Iterator[tuple[TensorInfo, Tensor]]:
        for name in self.merged:
            yield TensorInfo(name, seed), self.deltas(name)

    def written(self) -> list[str]:
        """Names of the merged model's tensors, tied ones once."""
        if self.base is None:
            return [name for name in self.reference.names if name in set(self.merged) or self._is_buffer(name)]
        return [name for name in self.reference.names if name not in self.reference.tied]

    def _is_buffer(self, name: str) -> bool:
        return name in self.left and not self.reference.dtype(name).is_floating_point
