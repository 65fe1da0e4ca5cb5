"""Two full fine-tunes become adapters of 1 %, and one base in memory answers as either of them."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from small import TASKS, make_base, make_finetune, texts
from transformers import BertForSequenceClassification

import dts


def accuracy(model, task: int, classes: int) -> float:
    """Of 200 texts that were not trained on, in %."""
    batch = texts(task, classes, 200)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits[:, :classes]  # the widest head's: the rest is -inf
    return 100 * (logits.argmax(1) == batch["labels"]).float().mean().item()


with TemporaryDirectory() as folder:
    root = Path(folder)
    base = make_base(root / "base")
    finetunes = {name: make_finetune(base, root / name, i, TASKS[name]) for i, name in enumerate(TASKS)}

    for name, finetune in finetunes.items():
        adapter = dts.compress(base, finetune, out=root / "adapters" / name, budget=0.01)
        print(f"{name}: {adapter.nbytes:,} bytes, {adapter.amr:.1%} of the base, by method {adapter.method!r}")
        print(f"  classes {adapter.class_names}, squared error of the difference {adapter.config['squared_error']:.2f}")

    model = dts.DTSModel.from_pretrained(base, adapters={name: root / "adapters" / name for name in TASKS})
    for i, (name, classes) in enumerate(TASKS.items()):
        whole = BertForSequenceClassification.from_pretrained(finetunes[name]).eval()
        model.set_task(name)  # the whole model, from now on
        print(
            f"{name}: the fine-tune is right on {accuracy(whole, i, len(classes)):.1f} % of new texts, "
            f"the adapter on {accuracy(model, i, len(classes)):.1f} %"
        )
    print(f"{model.tasks} take {model.status()['nbytes']:,} bytes beside the one base in memory")

    plain = model.merge_and_unload("mood")  # an ordinary transformers model again
    print(f"merged into the weights: {type(plain).__name__}, right on {accuracy(plain, 0, 2):.1f} %")
