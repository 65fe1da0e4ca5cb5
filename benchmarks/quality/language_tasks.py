"""Language tasks of ../shared/data/lm: grade-school mathematics, short Python functions and Shakespeare's plays."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.quality.image_tasks import shared_data
from dts.demo.tasks import MissingData


@dataclass(frozen=True)
class LanguageTask:
    """One task: token ids int64 [sequences, length], a training and a held-out set.

    Documents are joined by the end-of-text token and cut into sequences of one length, so nothing is padded.
    """

    name: str
    train: Tensor
    test: Tensor

    @property
    def digest(self) -> str:
        """A hash over everything a fine-tune depends on: the training tokens."""
        return hashlib.sha256(json.dumps(self.train.tolist()).encode()).hexdigest()


def load(name: str, tokenizer, length: int, tokens: int, folder: Path | None = None) -> LanguageTask:
    """Task `name` in sequences of `length` tokens, with at most `tokens` for training, the same ones each time.

    MissingData if the file is not there.
    """
    folder = (folder or shared_data()) / "lm"
    try:
        splits = READERS[name](folder)
    except FileNotFoundError as error:
        raise MissingData(f"{error.filename} is missing; the suite needs the data sets beside the checkout") from error
    train, test = (_sequences(tokenizer, documents, length) for documents in splits)
    chosen = sorted(random.Random(name).sample(range(len(train)), min(len(train), tokens // length)))
    return LanguageTask(name, train[chosen], test)


def _sequences(tokenizer, documents: list[str], length: int) -> Tensor:
    ids: list[int] = []
    for document in documents:
        ids += [*tokenizer(document).input_ids, tokenizer.eos_token_id]
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def lines(path: Path) -> list[dict]:
    """The rows of a file of JSON lines, packed with gzip."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def question(row: dict) -> str:
    """How a document of gsm8k begins."""
    return f"Question: {row['question']}\nAnswer:"


def gsm8k(folder: Path) -> tuple[list[str], list[str]]:
    """Questions and worked answers; the published split."""
    train, test = (
        [f"{question(row)} {row['answer']}" for row in lines(folder / f"gsm8k_{split}.jsonl.gz")]
        for split in ("train", "test")
    )
    return train, test


def is_test(row: dict) -> bool:
    """Is this task of mbpp of its published test set?"""
    return 11 <= row["task_id"] <= 510


def mbpp(folder: Path) -> tuple[list[str], list[str]]:
    """A task in words and the Python that does it.  Test: the published test set, tasks 11 to 510; the rest trains."""
    train, test = [], []
    for row in lines(folder / "mbpp.jsonl.gz"):
        code = row["code"].replace("\r\n", "\n")
        (test if is_test(row) else train).append(f"# {row['text']}\n{code}\n")
    return train, test


def tinyshakespeare(folder: Path) -> tuple[list[str], list[str]]:
    """One document; its last tenth is held out."""
    with gzip.open(folder / "tinyshakespeare.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read()
    cut = text.index("\n\n", len(text) * 9 // 10)
    return [text[:cut]], [text[cut:]]


READERS: dict[str, Callable[[Path], tuple[list[str], list[str]]]] = {
    "gsm8k": gsm8k,
    "mbpp": mbpp,
    "tinyshakespeare": tinyshakespeare,
}
