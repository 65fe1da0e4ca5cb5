"""One model from several fine-tunes; where that is not enough, an adapter a task on top of the merged model."""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

from small import accuracy, make_base, make_finetune
from transformers import BertForSequenceClassification

import dts

TASKS = {"mood": ["sad", "glad"], "topic": ["sport", "science", "politics"]}
warnings.filterwarnings("ignore", "4 tensors are not in the merged model")  # heads: each task has its own


def right(model_of) -> str:
    """Accuracy on each task of what ``model_of(its number, name)`` gives."""
    found = [(name, accuracy(model_of(i, name), i, len(TASKS[name]))) for i, name in enumerate(TASKS)]
    return ", ".join(f"{name} {percent:.0f} %" for name, percent in found)


with TemporaryDirectory() as folder:
    root = Path(folder)
    base = make_base(root / "base")
    finetunes = {name: make_finetune(base, root / name, i, TASKS[name]) for i, name in enumerate(TASKS)}
    whole = {name: BertForSequenceClassification.from_pretrained(path).eval() for name, path in finetunes.items()}
    print(f"each fine-tune on its task: {right(lambda i, name: whole[name])}")

    for method in ("average", "ties", "tsv_merge"):  # dts.merge.table() lists all of them and their options
        merged = dts.merge(base, list(finetunes.values()), method=method)  # a state dict; out= writes a folder

        def with_own_head(i, name, merged=merged):
            """The merged encoder under the head that the task's fine-tune has: heads are not merged."""
            model = BertForSequenceClassification.from_pretrained(finetunes[name]).eval()
            model.bert.load_state_dict(merged)
            return model

        print(f"merged by {method}, own heads: {right(with_own_head)}")

    path, adapters = dts.merge.compress_difference(base, finetunes, "average", root / "all", budget=0.02)
    print("difference adapters:", {name: f"{a.kind}, {a.nbytes:,} bytes" for name, a in adapters.items()})
    model = dts.DTSModel.from_pretrained(path, adapters=adapters)

    def as_task(i, name):
        """The one model in memory, answering as a task."""
        model.set_task(name)
        return model

    print(f"the average with an adapter a task: {right(as_task)}")
