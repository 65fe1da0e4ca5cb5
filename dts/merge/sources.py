"""Which tensors of a base and its fine-tunes are merged, and their values, one tensor at a time."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dts.adapter.tokenizer import differing_files
from dts.checkpoint import Checkpoint, Mismatch, Pairing, open_checkpoint, pair

from .tensor import TensorInfo

# classification heads of transformers: of the same shape in two fine-tunes by chance, never to be averaged
HEADS = r"(^|\.)(classifier|pre_classifier|classification_head|score|qa_outputs|summary|logits_proj)\."


@dataclass
class Sources:
    """The models to merge, aligned on the names of ``reference``: the base, or the first model where there is none.

    names: per model, reference name -> its own name; merged: reference names to merge, in the reference's order;
    left: reference name -> why it is not merged (it stays the base's; without a base it is left out).
    pairings: of each model with the reference;  added: reference name -> rows beyond its own, see `added_rows`.
    """

    reference: Checkpoint
    base: Checkpoint | None
    models: list[Checkpoint]
    names: list[dict[str, str]]
    merged: list[str]
    left: dict[str, str]
    pairings: list[Pairing]
    added: dict[str, list[tuple[int, str]]]

    @classmethod
    def open(cls, base, finetunes, exclude=()) -> "Sources":
        """Open and align all models; raises Mismatch with every mismatch of every model."""
        if not finetunes:
            raise ValueError("nothing to merge: give at least one fine-tuned model")
        models = [open_checkpoint(m) for m in finetunes]
        base = None if base is None else open_checkpoint(base)
        reference = models[0] if base is None else base
        names, pairings, wrong = [], [], []
        for model in models:
            try:
                pairings.append(pair(reference, model))
                names.append({p.base_name: p.name for p in pairings[-1].pairs.values() if p.base_name})
            except Mismatch as error:
                wrong += [f"{model.source}: {line}" for line in error.mismatches]
        if wrong:
            raise Mismatch(f"these models cannot be merged on {reference.source}", wrong)
        models = [p.finetuned for p in pairings]  # under their names without wrappers
        patterns = [*_patterns(exclude, reference), *([HEADS] if base is None else [])]
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
        return cls(reference, base, models, names, merged, left, pairings, added_rows(pairings))

    def deltas(self, name: str) -> Tensor:
        """Each model's difference to the base (its value, where there is no base): float32 or float64 [N, *shape]."""
        wide = torch.float64 if self.reference.dtype(name) == torch.float64 else torch.float32
        shape = self.reference.shape(name)
        stacked = torch.empty(len(self.models), *shape, dtype=wide)
        for row, model, known in zip(stacked, self.models, self.names):
            value = model.load(known[name])
            row.copy_(value[: shape[0]] if shape else value)  # rows added to the vocabulary are the fine-tune's own
            model.release(known[name])
        if self.base is not None:
            stacked.sub_(self.base.load(name))
        return stacked if bool(stacked.isfinite().all()) else self._of_infinite(name, stacked)

    def _of_infinite(self, name: str, stacked: Tensor) -> Tensor:
        """`deltas` of a tensor that has infinite elements: those that all have alike (masks) have no difference.

        Raises ValueError that names the models with others, or with NaN.
        """
        reference, wrong = self.reference.load(name), []
        for row, model, known in zip(stacked, self.models, self.names):
            value = model.load(known[name])
            value = value[: len(reference)] if reference.dim() else value
            alike = value == reference
            if self.base is not None:
                row.masked_fill_(alike, 0)
            if not bool((row.isfinite() | alike).all()):
                wrong.append(model.source)
            model.release(known[name])
        if wrong:
            raise ValueError(
                f"{name} has NaN, or infinite elements that {self.reference.source} has not, in {', '.join(wrong)}: "
                "look at the models, or leave it out, by exclude=[...] (--option exclude='[\"name\"]')"
            )
        return stacked

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the merged tensor, added rows included."""
        shape = self.reference.shape(name)
        return (shape[0] + self._rows(name), *shape[1:]) if name in self.added else shape

    def _rows(self, name: str) -> int:
        i, own = self.added[name][0]
        return self.models[i].shape(own)[0] - self.reference.shape(name)[0]

    def with_added_rows(self, name: str, value: Tensor) -> Tensor:
        """The merged tensor with the rows that models added: as they are, or the mean where several have them."""
        if name not in self.added:
            return value
        rows = [self.models[i].load(own)[value.shape[0] :].float() for i, own in self.added[name]]
        return torch.cat([value, (rows[0] if len(rows) == 1 else torch.stack(rows).mean(0)).to(value.dtype)])

    @property
    def enlarged_by(self) -> Checkpoint | None:
        """A model whose vocabulary the merged one has: its tokenizer and sizes are the merged model's."""
        found = next((members[0][0] for members in self.added.values()), None)
        return None if found is None else self.models[found]

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


def _patterns(exclude: str | Iterable[str], reference: Checkpoint) -> list[str]:
    """One pattern, or several; raises ValueError for those that are none, or that no tensor's name fits."""
    given = [exclude] if isinstance(exclude, str) else list(exclude)
    wrong = []
    for pattern in given:
        try:
            if not any(re.search(pattern, name) for name in reference.names):
                wrong.append(f"{pattern!r} is in no tensor's name of {reference.source}")
        except (re.error, TypeError) as error:
            wrong.append(f"{pattern!r} is no pattern: {error}")
    if wrong:
        raise ValueError(f"exclude: {'; '.join(wrong)}")
    return given


def added_rows(pairings: list[Pairing]) -> dict[str, list[tuple[int, str]]]:
    """reference name -> (model, its own name) of every model that has rows beyond the reference's.

    One model's added rows are kept as they are.  Several models' are averaged if they mean the same tokens: equally
    many, and the same tokenizer.  Raises Mismatch otherwise, with the way to go.
    """
    added: dict[str, list[tuple[int, str]]] = {}
    for i, pairing in enumerate(pairings):
        for p in pairing.pairs.values():
            if p.base_name and p.added_rows and not p.tied_to:
                added.setdefault(p.base_name, []).append((i, p.name))
    wrong = []
    for name, members in added.items():
        models = [pairings[i].finetuned for i, _ in members]
        counts = {m.source: pairings[i].pairs[own].added_rows for m, (i, own) in zip(models, members)}
        first = models[0]
        others = [
            m
            for m, (_, own) in zip(models[1:], members[1:])
            if not _same_tokens(first, members[0][1], m, own, pairings[0].base.shape(name)[0])
        ]
        if len(set(counts.values())) > 1 or others:
            rows = ", ".join(f"{count} by {source}" for source, count in counts.items())
            wrong.append(
                f"{name}: rows were added for other tokens ({rows}): merge on a base enlarged to one "
                "tokenizer that has them all, or resize the models to the base's vocabulary"
            )
    if wrong:
        raise Mismatch("these models have vocabularies of their own", wrong)
    return added


def _same_tokens(a: Checkpoint, a_name: str, b: Checkpoint, b_name: str, rows: int) -> bool:
    """Are the rows beyond these the same tokens': of one tokenizer, or equal?"""
    if a.shape(a_name) != b.shape(b_name):
        return False
    if a.folder and b.folder and differing_files(None, a.folder):
        files = {name for one, two in ((a, b), (b, a)) for name in differing_files(one.folder, two.folder)}
        return not any(
            name.startswith(("tokenizer.json", "added_tokens", "vocab")) or name.endswith(".model") for name in files
        )
    return torch.equal(a.load(a_name)[rows:], b.load(b_name)[rows:])
