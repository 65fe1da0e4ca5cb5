"""A base on two processes, each with its part of every task: torchrun --nproc-per-node 2 examples/parallel.py"""

import copy
import shutil
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM, logging
from transformers.distributed import DistributedConfig

import dts

NUMBERS, LENGTH = 60, 8

logging.set_verbosity_error()
logging.disable_progress_bar()


def counting(model: LlamaForCausalLM, step: int, batches: int) -> LlamaForCausalLM:
    """A copy whose weights were all trained to count by this step, round and round."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(batches):
        ids = (torch.randint(NUMBERS, (32, 1)) + step * torch.arange(LENGTH)) % NUMBERS
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


dist.init_process_group("gloo")
names = [tempfile.mkdtemp()]
dist.broadcast_object_list(names)  # one folder for all
folder = Path(names[0])
if dist.get_rank() == 0:
    torch.manual_seed(0)
    sizes = dict(vocab_size=NUMBERS, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4)
    base = counting(LlamaForCausalLM(LlamaConfig(**sizes)), 1, batches=30)
    base.save_pretrained(folder / "base")
    for name, step in (("up", 2), ("down", -1)):
        dts.compress(base, counting(base, step, batches=60), name=name, budget=0.2).save(folder / name)
dist.barrier()

plan = DistributedConfig(tp_plan="auto")  # transformers' own; torch's parallelize_module does as well
model = dts.DTSModel.from_pretrained(folder / "base", {"up": folder / "up"}, distributed_config=plan)
model.load_task("down", folder / "down")  # tasks come and go, in all processes

prompt, tasks = torch.full((3, 1), 20), ["up", "down", None]
options = dict(max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
found = model.generate(prompt, attention_mask=torch.ones_like(prompt), tasks=tasks, **options)
if dist.get_rank() == 0:
    for task, row in zip(tasks, found.tolist()):
        print(f"{task or 'the base':>10}: {row}")
    print(f"{model.status()['nbytes']} bytes of tasks in each of {dist.get_world_size()} processes")
    shutil.rmtree(folder)
dist.destroy_process_group()
