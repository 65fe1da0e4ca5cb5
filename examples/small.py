"""A small BERT and small tasks, so that every example runs offline in seconds.  Yours come from a folder or the hub.

A task here is to find which of its classes a text is about.  Of a text's 12 words 4 belong to the class, 4 to the task
alone and 4 to all tasks.
"""

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, logging

WORDS, SHARED, OF_A_TASK, OF_A_CLASS, ROUND = 600, 100, 100, 10, 4

logging.set_verbosity_error()
logging.disable_progress_bar()


def make_base(folder: Path) -> Path:
    """A base on disk: 0.5 M parameters, not trained."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4)
    BertModel(BertConfig(vocab_size=WORDS, max_position_embeddings=32, **sizes)).save_pretrained(folder)
    return folder


def texts(task: int, classes: int, rows: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """input_ids [rows, 12] and labels [rows] of the task with this number."""
    draw = torch.Generator().manual_seed(1000 * task + seed)
    labels = torch.randint(classes, (rows,), generator=draw)
    first, draws = SHARED + OF_A_TASK * task, dict(size=(rows, ROUND), generator=draw)
    own = first + OF_A_CLASS * labels[:, None] + torch.randint(OF_A_CLASS, **draws)
    others = torch.randint(first + OF_A_TASK // 2, first + OF_A_TASK, **draws)
    ids = torch.stack([torch.randint(SHARED, **draws), own, others], dim=2).flatten(1)
    return {"input_ids": ids, "labels": labels}


def make_finetune(base: Path, folder: Path, task: int, classes: list[str], steps: int = 40) -> Path:
    """A full fine-tune of the base on one task, with a head of its own, on disk."""
    torch.manual_seed(task)
    model = BertForSequenceClassification.from_pretrained(base, num_labels=len(classes))
    model.config.id2label = dict(enumerate(classes))
    model.bert.embeddings.requires_grad_(False)  # left alone, as is often done: the layers above hold the task
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    for step in range(steps):
        model(**texts(task, len(classes), 32, seed=100 + step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def accuracy(model, task: int, classes: int, **options) -> float:
    """Of 200 texts that were not trained on, in %."""
    batch = texts(task, classes, 200)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], **options).logits
    return 100 * (logits[:, :classes].argmax(1) == batch["labels"]).float().mean().item()
