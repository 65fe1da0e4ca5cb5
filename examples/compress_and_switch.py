"""Two full fine-tunes become adapters, and one base in memory answers as either of them."""

from pathlib import Path
from tempfile import TemporaryDirectory

from small import accuracy, make_base, make_finetune
from transformers import BertForSequenceClassification

import dts

TASKS = {"mood": ["sad", "glad"], "topic": ["sport", "science", "politics"]}

with TemporaryDirectory() as folder:
    root = Path(folder)
    base = make_base(root / "base")
    finetunes = {name: make_finetune(base, root / name, i, TASKS[name]) for i, name in enumerate(TASKS)}

    # of a model this small, names and heads alone take more than 1 %
    for name, finetune in finetunes.items():
        adapter = dts.compress(base, finetune, out=root / "adapters" / name, budget=0.02)
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
