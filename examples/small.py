"""A small BERT and small tasks, so that every example runs offline in seconds.  Yours come from a folder or the hub.

    python examples/small.py models       writes models/base, its fine-tunes models/mood and models/topic, test data
A task: which of its classes is a text about?  Of its 12 words 4 are the class's, 4 the task's and 4 all tasks'.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, logging

SHARED, OF_A_TASK, OF_A_CLASS, ROUNDS = 100, 100, 10, 4  # words
TASKS = {"mood": ["sad", "glad"], "topic": ["sport", "science", "politics"]}

logging.set_verbosity_error()
logging.disable_progress_bar()


def make_base(folder: Path) -> Path:
    """A base on disk: 1 M parameters, not trained."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4)
    BertModel(BertConfig(vocab_size=5000, max_position_embeddings=32, **sizes)).save_pretrained(folder)
    return folder


def texts(task: int, classes: int, rows: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """input_ids [rows, 12] and labels [rows] of the task with this number."""
    draw = torch.Generator().manual_seed(1000 * task + seed)
    labels = torch.randint(classes, (rows,), generator=draw)
    first, draws = SHARED + OF_A_TASK * task, dict(size=(rows, ROUNDS), generator=draw)
    own = first + OF_A_CLASS * labels[:, None] + torch.randint(OF_A_CLASS, **draws)
    others = torch.randint(first + OF_A_TASK // 2, first + OF_A_TASK, **draws)
    return {"input_ids": torch.stack([torch.randint(SHARED, **draws), own, others], 2).flatten(1), "labels": labels}


def make_finetune(base: Path, folder: Path, task: int, classes: list[str]) -> Path:
    """A full fine-tune of the base on one task, with a head of its own, on disk; embeddings are left alone."""
    torch.manual_seed(task)
    model = BertForSequenceClassification.from_pretrained(base, id2label=dict(enumerate(classes)))
    model.bert.embeddings.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    for step in range(40):
        model(**texts(task, len(classes), 32, seed=100 + step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    base = make_base(Path(sys.argv[1]) / "base")
    for task, (name, classes) in enumerate(TASKS.items()):
        make_finetune(base, base.parent / name, task, classes)
        ids, labels = texts(task, len(classes), 200, seed=1000).values()  # that no fine-tune saw
        rows = [{"input_ids": row, "label": classes[i]} for row, i in zip(ids.tolist(), labels.tolist())]
        (base.parent / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
