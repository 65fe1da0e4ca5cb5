"""One batch, another task in each row: a small GPT-2, fine-tuned to count up and to count down, generates both."""

import copy

import torch
from transformers import GPT2Config, GPT2LMHeadModel, logging

import dts

NUMBERS, LENGTH = 60, 8

logging.set_verbosity_error()


def counts(steps: tuple[int, ...], rows: int = 32) -> torch.Tensor:
    """[rows, 8] numbers, each its predecessor plus the row's step, round and round."""
    step = torch.tensor(steps)[torch.randint(len(steps), (rows, 1))]
    return (torch.randint(NUMBERS, (rows, 1)) + step * torch.arange(LENGTH)) % NUMBERS


def trained(model: GPT2LMHeadModel, steps: tuple[int, ...], batches: int) -> GPT2LMHeadModel:
    """A copy whose weights were all trained to count by these steps."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(batches):
        ids = counts(steps)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


torch.manual_seed(0)
sizes = dict(vocab_size=NUMBERS, n_embd=64, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
base = trained(GPT2LMHeadModel(GPT2Config(**sizes)), (1, -1, 2, -2), batches=80)
finetunes = {"up": trained(base, (1,), batches=20), "down": trained(base, (-1,), batches=20)}

model = dts.DTSModel(copy.deepcopy(base))
for name, finetune in finetunes.items():
    model.load_task(name, dts.compress(base, finetune, name=name, rank_fraction=0.3))  # in memory: no out=

prompt = torch.full((3, 1), 20)
options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
options["attention_mask"] = torch.ones_like(prompt)
tasks = ["up", "down", None]  # a task a row, through generate as well; None is the base
for task, row in zip(tasks, model.generate(prompt, tasks=tasks, **options).tolist()):
    print(f"{task or 'the base':>10}: {row}")
for name, finetune in finetunes.items():
    alone = finetune.generate(prompt[:1], **options | {"attention_mask": prompt[:1] // 20})
    print(f"{name:>10}: {alone[0].tolist()}, the fine-tune itself")

out = model(input_ids=prompt, tasks=[{"up": 0.5, "down": 0.5}, "up", "down"])  # a mixture is a task too
likely = out.logits[:, -1].topk(2).indices.tolist()
print("likeliest two after 20, of a mixture, up and down:", likely)
