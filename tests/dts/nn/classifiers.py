"""A small transformers base and full fine-tunes of it with classes of their own, as adapters and as dense models."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import dts
from dts.adapter.apply import write_checkpoint
from dts.nn import DTSModel

transformers = pytest.importorskip("transformers")

TEXT = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
CLASSES = {  # task -> its classes and the kind of its problem
    "mood": (["bad", "good"], None),
    "topic": (["art", "law", "sea", "sky", "war"], None),
    "many": (["x", "y", "z"], "multi_label_classification"),
    "stars": (["stars"], "regression"),
}


@dataclass
class Family:
    """folder: of the base;  adapters, dense: by task; dense[None] is the base."""

    folder: Path
    adapters: dict
    dense: dict

    def model(self, *tasks) -> DTSModel:
        """All tasks, or these."""
        chosen = {name: adapter for name, adapter in self.adapters.items() if not tasks or name in tasks}
        return DTSModel.from_pretrained(self.folder, adapters=chosen)


def family(folder, architecture="BertForSequenceClassification", config="BertConfig", sizes=TEXT, classes=CLASSES):
    """Fine-tunes whose base has two classes without names."""
    make = getattr(transformers, architecture)
    config = getattr(transformers, config)(**sizes)
    torch.manual_seed(0)
    base = make(config).eval()
    base.save_pretrained(folder / "base")
    adapters, dense = {}, {None: base}
    for name, (labels, problem) in classes.items():
        own = make.from_pretrained(
            folder / "base",
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            problem_type=problem,
            ignore_mismatched_sizes=True,
        )
        with torch.no_grad():
            for parameter in own.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        own.save_pretrained(folder / "tuned" / name)
        adapters[name] = dts.compress(folder / "base", folder / "tuned" / name, name=name, rank_fraction=0.5)
        write_checkpoint(folder / "base", adapters[name], folder / "dense" / name)
        dense[name] = make.from_pretrained(folder / "dense" / name).eval()
    return Family(folder / "base", adapters, dense)


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
