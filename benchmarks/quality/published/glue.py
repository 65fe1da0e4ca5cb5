"""GLUE: RoBERTa and GPT-2 with a classification head, fully fine-tuned on each task."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.quality.published import hub
from benchmarks.quality.published.clip import identity
from benchmarks.quality.published.hub import Checkpoint, Data
from benchmarks.quality.suite import Classifier, matrix_deltas
from dts.demo import evaluate


@dataclass(frozen=True)
class GlueTask:
    """A task's name and its rows: a sequence of dicts with the data's columns and a label."""

    name: str
    data: Data
    rows: object


class Glue:
    """One base, whose tensors all subjects share, and its tokenizer."""

    def __init__(self, base: Checkpoint, device: str):
        from transformers import AutoModel, AutoTokenizer

        self.device = device
        model = AutoModel.from_pretrained(**base.where, dtype=torch.float32)
        self.bases = {f"{model.base_model_prefix}.{name}": tensor for name, tensor in model.state_dict().items()}
        self.tokenizer = AutoTokenizer.from_pretrained(**base.where)
        if self.tokenizer.pad_token is None:  # GPT-2: any token will do, as it is masked
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def subject(self, task: GlueTask, seed: int, finetuned: Checkpoint, samples: int) -> Classifier:
        """The fine-tune, measured on up to `samples` of the task's validation set, spread evenly over it."""
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(**finetuned.where, dtype=torch.float32)
        model.config.pad_token_id = self.tokenizer.pad_token_id
        deltas = matrix_deltas(self.bases, model.state_dict())
        name = identity(finetuned, model)
        model.eval().to(self.device)
        step = max(1, -(-len(task.rows) // samples))
        rows = [task.rows[i] for i in range(0, len(task.rows), step)]
        columns, label = task.data.columns, hub.column(rows[0], hub.LABELS)
        texts = [row[columns[0]] if len(columns) == 1 else tuple(row[c] for c in columns) for row in rows]

        def on_device(**inputs):
            return model(**{name: value.to(self.device) for name, value in inputs.items()})

        def forward(deltas):
            evaluate.with_tensors(model, {name: self.bases[name] + delta for name, delta in deltas.items()})
            return evaluate.logits(on_device, self.tokenizer, texts)

        return Classifier(task.name, seed, name, deltas, forward, torch.tensor([int(row[label]) for row in rows]))
