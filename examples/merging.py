"""One model from several fine-tunes; where that is not enough, an adapter a task on top of the merged model."""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from small import TASKS, make_base, make_finetune, texts
from transformers import BertForSequenceClassification

import dts

warnings.filterwarnings("ignore", "4 tensors are not in the merged model")  # heads: each task has its own


def right(model_of) -> str:
    """Accuracy on 200 new texts of each task, of what ``model_of(task's name)`` gives."""
    found = []
    for i, (name, classes) in enumerate(TASKS.items()):
        batch = texts(i, len(classes), 200)
        with torch.no_grad():
            logits = model_of(name)(input_ids=batch["input_ids"]).logits[:, : len(classes)]
        found.append(f"{name} {100 * (logits.argmax(1) == batch['labels']).float().mean():.0f} %")
    return ", ".join(found)


with TemporaryDirectory() as folder:
    root = Path(folder)
    base = make_base(root / "base")
    finetunes = {name: make_finetune(base, root / name, i, TASKS[name]) for i, name in enumerate(TASKS)}

    def whole(name):
        return BertForSequenceClassification.from_pretrained(finetunes[name]).eval()

    print(f"each fine-tune on its task: {right(whole)}")
    for method in ("average", "ties", "tsv_merge"):  # dts.merge.table() lists all of them and their options
        merged = dts.merge(base, list(finetunes.values()), method=method)  # a state dict; out= writes a folder

        def under_own_head(name, merged=merged):  # heads are not merged
            model = whole(name)
            model.bert.load_state_dict(merged)
            return model

        print(f"merged by {method}, own heads: {right(under_own_head)}")

    path, adapters = dts.merge.compress_difference(base, finetunes, "average", root / "all", budget=0.01)
    print("difference adapters:", {name: f"{a.kind}, {a.nbytes:,} bytes" for name, a in adapters.items()})
    model = dts.DTSModel.from_pretrained(path, adapters=adapters)
    print(f"the average with an adapter a task: {right(lambda name: (model.set_task(name), model)[1])}")
