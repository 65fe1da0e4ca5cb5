"""A fine-tune as it is asked to be compared with its base: a part of it, with the rows that it lacks."""

from dataclasses import replace

from dts.checkpoint.checkpoint import Checkpoint
from dts.checkpoint.names import named_as_loaded
from dts.checkpoint.part import only_part
from dts.checkpoint.prefixes import align
from dts.checkpoint.vocabulary import SHARED, with_rows_of


def fitted(base: Checkpoint, finetuned: Checkpoint, only: str | None = None, vocabulary: str | None = None):
    """only: a part's name, see `only_part`;  vocabulary: "shared" keeps the base's rows beyond the fine-tune's.

    Raises ValueError for another word, CheckpointError for a part that there is not.
    """
    if vocabulary not in (None, SHARED):
        raise ValueError(
            f"vocabulary is {SHARED!r} (rows that the fine-tune lacks stay the base's), not {vocabulary!r}"
        )
    if only is not None:
        finetuned = only_part(base, finetuned, only)
    return finetuned if vocabulary is None else _with_rows(base, finetuned)


def _with_rows(base: Checkpoint, finetuned: Checkpoint) -> Checkpoint:
    """Under the names of its file, which say what became of each tensor."""
    named, in_file = named_as_loaded(base, finetuned)
    padded = with_rows_of(base, named, align(base, named)[1])
    grown = {in_file.get(n, n): t for n, t in padded.tensors.items() if t is not named.tensors[n]}
    return replace(finetuned, tensors=finetuned.tensors | grown, config=padded.config)
