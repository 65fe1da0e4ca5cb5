"""CLIP: vision towers fine-tuned on classification tasks, under a zero-shot head of the base's text tower."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.quality.published import hub
from benchmarks.quality.published.hub import Checkpoint, Data
from benchmarks.quality.suite import Classifier, matrix_deltas
from dts.demo import evaluate

BATCH = 128  # images


@dataclass(frozen=True)
class ClipTask:
    """A task's name, its rows (a sequence of dicts with an image and a label) and the prompts of each class."""

    name: str
    data: Data
    rows: object
    prompts: list[list[str]]


class Clip:
    """The base on `device`, shared by all tasks: a task is the state of its vision tower and its head."""

    def __init__(self, base: Checkpoint, device: str):
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        self.device = device
        self.model = CLIPModel.from_pretrained(**base.where, dtype=torch.float32).eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(**base.where)
        self.processor = AutoImageProcessor.from_pretrained(**base.where)
        self.bases = {n: t.to("cpu", copy=True) for n, t in self.model.vision_model.state_dict().items()}

    @torch.inference_mode()
    def head(self, prompts: list[list[str]]) -> Tensor:
        """[classes, width]: of each class the mean of its prompts' embeddings, at unit length."""
        rows = []
        for texts in prompts:
            inputs = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
            embeddings = self.model.text_projection(self.model.text_model(**inputs).pooler_output)
            rows.append(_unit(_unit(embeddings).mean(0)))
        return torch.stack(rows)

    @torch.inference_mode()
    def logits(self, tower: dict[str, Tensor], head: Tensor, batches) -> Tensor:
        """[N, classes] (CPU) of the vision tower with these tensors, over batches of pixels [B, 3, size, size]."""
        evaluate.with_tensors(self.model.vision_model, tower)
        found = []
        for pixels in batches:
            pooled = self.model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
            image = _unit(self.model.visual_projection(pooled))
            found.append((self.model.logit_scale.exp() * image @ head.T).float().cpu())
        return torch.cat(found)

    def subject(self, task: ClipTask, seed: int, finetuned: Checkpoint, samples: int) -> Classifier:
        """The fine-tune, measured on up to `samples` of the task's test set, spread evenly over it."""
        from transformers import CLIPVisionModel

        model = CLIPVisionModel.from_pretrained(**finetuned.where, dtype=torch.float32)
        # releases of transformers differ in whether the tower is the model or a part of it
        own = getattr(model, "vision_model", model).state_dict()
        deltas = matrix_deltas(self.bases, own)
        rest = {name: tensor for name, tensor in own.items() if name not in deltas}
        head = self.head(task.prompts)
        images = Images(task, samples, self.processor)

        def forward(deltas):
            changed = {name: self.bases[name] + delta.view_as(self.bases[name]) for name, delta in deltas.items()}
            return self.logits(rest | changed, head, images.batches())

        return Classifier(task.name, seed, identity(finetuned, model), deltas, forward, images.labels)


class Images(torch.utils.data.Dataset):
    """Rows spread evenly over a test set, as pixels; decoded again on every pass, as they may not fit in memory."""

    def __init__(self, task: ClipTask, samples: int, processor):
        self.rows, self.processor = task.rows, processor
        self.chosen = range(0, len(task.rows), max(1, -(-len(task.rows) // samples)))
        first = task.rows[0]
        self.image, self.label = hub.column(first, task.data.columns), hub.column(first, hub.LABELS)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Tensor:
        image = self.rows[self.chosen[index]][self.image].convert("RGB")
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]

    @cached_property
    def labels(self) -> Tensor:
        # a datasets.Dataset gives a column without decoding the images
        column = self.rows[self.label] if hasattr(self.rows, "features") else [row[self.label] for row in self.rows]
        return torch.tensor([int(column[i]) for i in self.chosen])

    def batches(self):
        # a GPU would wait for one process that decodes images; on a CPU the model needs the cores
        workers = min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0
        return torch.utils.data.DataLoader(self, batch_size=BATCH, num_workers=workers)


def identity(checkpoint: Checkpoint, model) -> str:
    """Changes whenever the checkpoint does: its place and, from the hub, the commit."""
    return "/".join(filter(None, (checkpoint.id, checkpoint.subfolder, getattr(model.config, "_commit_hash", None))))


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)
