"""A random Llama with a tokenizer of bytes, full fine-tunes of it on nothing, and what each says alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import dts
from dts.serve.encode import padded

HIDDEN, LAYERS, RANK = 256, 4, 16
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Question:
    """A prompt for a task, and the greedy answer of its dense single-task model in float32, as text."""

    task: str
    prompt: tuple[int, ...]
    answer: str


def tokenizer() -> Any:
    """A token a byte, after <pad> and <end>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(["<pad>", "<end>", *letters])}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


def base_model() -> Any:
    torch.manual_seed(0)
    sizes = dict(hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4)
    ids = dict(bos_token_id=None, eos_token_id=None, pad_token_id=0)  # answers have as many tokens as were asked for
    config = transformers.LlamaConfig(vocab_size=258, max_position_embeddings=512, **sizes, **ids)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def changed(model: Any, seed: int) -> Any:
    """A full fine-tune of it, on nothing."""
    tuned, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=draw) * (parameter.std(correction=0) + 0.05)
    return tuned


def make(folder: Path, tasks: int) -> list[str]:
    """Base and adapters below a folder, those that are not there; the tasks' names."""
    names = [f"t{i}" for i in range(tasks)]
    if not (folder / "base").exists():
        base_model().save_pretrained(folder / "base")
        words = tokenizer()
        words.eos_token = None  # as above
        words.save_pretrained(folder / "base")
    for seed, name in enumerate(names):
        if (folder / "adapters" / name).exists():
            continue
        changed(base_model(), seed).save_pretrained(folder / "tuned" / name)
        dts.compress(
            folder / "base", folder / "tuned" / name, out=folder / "adapters" / name, rank_fraction=RANK / HIDDEN
        )
    return names


def questions(folder: Path, names: list[str], each: int, tokens: int) -> list[Question]:
    """Prompts of 8 to 64 tokens for every task, in turns."""
    draw, words, found = torch.Generator().manual_seed(1), tokenizer(), []
    prompts = [
        torch.randint(2, 258, (int(torch.randint(8, 65, (1,), generator=draw)),), generator=draw) for _ in range(each)
    ]
    for name in names:
        model = dts.DTSModel.from_pretrained(folder / "base", adapters={name: folder / "adapters" / name})
        single = model.merge_and_unload(name).eval()
        for prompt in prompts:
            ids = prompt[None]
            out = single.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
            text = words.decode(out[0, len(prompt) :].tolist(), skip_special_tokens=True)
            found.append(Question(name, tuple(prompt.tolist()), text))
    return [found[task * each + i] for i in range(each) for task in range(len(names))]


class Peft:
    """LoRAs of the same rank on the same layers, a batch of whole calls with a task a row: in this process, no HTTP."""

    def __init__(self, names: list[str]):
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, target_modules=list(LINEAR), init_lora_weights=False)
        self.model: Any = get_peft_model(base_model(), config, adapter_name=names[0])
        for name in names[1:]:
            self.model.add_adapter(name, config)
        self.model.eval()

    @torch.no_grad()
    def run(self, asked: list[Question], tokens: int, rows: int) -> int:
        """Tokens made, ``rows`` at a time, those nearest in length together."""
        made, ordered = 0, sorted(asked, key=lambda one: len(one.prompt))
        for at in range(0, len(ordered), rows):
            part = ordered[at : at + rows]
            batch = padded([one.prompt for one in part], 0, self.model.device, left=True)
            names = [one.task for one in part]
            out = self.model.generate(**batch, max_new_tokens=tokens, do_sample=False, adapter_names=names)
            made += (out.shape[1] - batch["input_ids"].shape[1]) * len(part)
        return made
