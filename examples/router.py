"""No task id: each row of a batch goes to the task in whose subspace the row's inputs have the most energy.

Two tasks on texts of different words: to say every word again, and to say of every word the next one in the vocabulary.
"""

import copy
import warnings

import torch
from transformers import BertConfig, BertForMaskedLM, logging

import dts

LENGTH, ROWS = 8, 50
TASKS = {"again": (2, 40, 0), "next": (40, 77, 1)}  # (first word, one beyond the last, what is added)

logging.set_verbosity_error()
warnings.filterwarnings("ignore", "BertForMaskedLM moved")  # far: this base was never trained


def texts(task: str, rows: int) -> torch.Tensor:
    first, last, _ = TASKS[task]
    return torch.randint(first, last, (rows, LENGTH))


def finetuned(base: BertForMaskedLM, task: str) -> BertForMaskedLM:
    model = copy.deepcopy(base).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(100):
        ids = texts(task, 32)
        model(input_ids=ids, labels=ids + TASKS[task][2]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


torch.manual_seed(0)
sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
base = BertForMaskedLM(BertConfig(vocab_size=78, max_position_embeddings=LENGTH, **sizes)).eval()
model = dts.DTSModel(copy.deepcopy(base))
for task in TASKS:  # components tell tasks apart better than a sketch, which has fewer of them
    model.load_task(task, dts.compress(base, finetuned(base, task), name=task, method="residual", rank_fraction=0.3))

truth = [task for task in TASKS for _ in range(ROWS)]
ids = torch.cat([texts(task, ROWS) for task in TASKS])
for what in ("scrambled inputs as zero", "50 unlabelled texts a task as zero"):
    choice = model.choose_tasks({"input_ids": ids})
    right = sum(task == true for task, true in zip(choice.tasks, truth))
    print(f"{what}: {right} of {len(truth)} rows sent to their task, sure to {choice.confidence.mean():.2f}")
    model.calibrate_tasks({"input_ids": torch.cat([texts(task, ROWS) for task in TASKS])})

with torch.no_grad():
    said = model(input_ids=ids, tasks="auto").logits.argmax(2)  # chooses, then runs each row as its task
expected = ids + torch.tensor([[TASKS[task][2]] for task in truth])
print(f"words right without a task id: {100 * (said == expected).float().mean():.0f} %")
for row in (0, ROWS):
    print(f"{model.choice.tasks[row]}: {ids[row].tolist()} -> {said[row].tolist()}")
