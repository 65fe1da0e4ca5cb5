"""A random Llama with a tokenizer, full fine-tunes of it on nothing, and what each says alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import dts
from dts.serve.encode import padded

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Size:
    """Of the model, and the rank of its adapters.  compressed: so many fine-tunes are made and compressed; further
    tasks are adapters whose factors are the first one's with their rows in another order, which takes no time."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    wide: int
    vocabulary: int
    rank: int
    compressed: int

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.hidden}, {self.vocabulary} tokens"


SIZES = {
    "small": Size(256, 4, 4, 4, 512, 258, 16, compressed=64),
    "100m": Size(768, 12, 12, 12, 2048, 30522, 16, compressed=1),  # BERT-base's layers and vocabulary: 108 M parameters
    "135m": Size(576, 30, 9, 3, 1536, 49152, 16, compressed=1),  # SmolLM2-135M's, of more and smaller layers
}
SMALL = SIZES["small"]


@dataclass(frozen=True)
class Question:
    """A prompt for a task, and the greedy answer of its dense single-task model in float32, as text of ``tokens``
    tokens."""

    task: str
    prompt: tuple[int, ...]
    answer: str
    tokens: int = 24


def tokenizer(size: Size = SMALL) -> Any:
    """A token a byte, after <pad> and <end>; then words of letters up to the size of the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["\u0120" + "".join(chr(97 + n // 26**place % 26) for place in range(4)) for n in range(size.vocabulary)]
    tokens = ["<pad>", "<end>", *letters, *words][: size.vocabulary]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


def base_model(size: Size = SMALL) -> Any:
    torch.manual_seed(0)
    sizes = dict(hidden_size=size.hidden, intermediate_size=size.wide, num_hidden_layers=size.layers)
    heads = dict(num_attention_heads=size.heads, num_key_value_heads=size.key_heads)
    ids = dict(bos_token_id=None, eos_token_id=None, pad_token_id=0)  # answers have as many tokens as were asked for
    tied = size is not SMALL
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary, max_position_embeddings=512, tie_word_embeddings=tied, **sizes, **heads, **ids
    )
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


def make(folder: Path, tasks: int, size: Size = SMALL) -> list[str]:
    """Base and adapters below a folder, those that are not there; the tasks' names."""
    names = [f"t{i}" for i in range(tasks)]
    if not (folder / "base").exists():
        base_model(size).save_pretrained(folder / "base")
        words = tokenizer(size)
        words.eos_token = None  # as above
        words.save_pretrained(folder / "base")
    for seed, name in enumerate(names):
        if (folder / "adapters" / name).exists():
            continue
        if seed >= size.compressed:
            reordered(folder / "adapters", name, seed)
            continue
        changed(base_model(size), seed).save_pretrained(folder / "tuned" / name)
        share = size.rank / size.hidden
        dts.compress(folder / "base", folder / "tuned" / name, out=folder / "adapters" / name, rank_fraction=share)
    return names


def reordered(adapters: Path, name: str, by: int) -> None:
    """Another task of the same sizes: the first one's adapter, its factors' rows moved by some places."""
    adapter = dts.Adapter.load(adapters / "t0")
    for key, entry in adapter.entries.items():
        if entry.factorised:
            moved = [
                None if one is None else one.with_tensors(lambda t: t.roll(by, 0) if t.dim() == 2 else t)
                for one in entry.matrices
            ]
            adapter.entries[key] = entry.with_matrices(moved)
    adapter.name = adapter.config["task"]["name"] = name
    adapter.save(adapters / name)


def lengths(count: int, shortest: int, longest: int) -> list[int]:
    """Tokens of answers, as many are between 10 and 20 as between 20 and 40, in an order of no meaning."""
    spread = [round(shortest * (longest / shortest) ** (i / max(count - 1, 1))) for i in range(count)]
    return [spread[i] for i in torch.randperm(count, generator=torch.Generator().manual_seed(2)).tolist()]


def questions(folder: Path, names: Sequence[str], each: int, tokens: Sequence[int]) -> list[Question]:
    """Prompts of 8 to 64 tokens for every task, in turns, with answers of so many tokens, one after the other; kept
    in the folder for the next run."""
    kept = folder / f"questions-{len(names)}-{each}-{'-'.join(map(str, tokens))}.json"
    if kept.exists():
        return [Question(**one | {"prompt": tuple(one["prompt"])}) for one in json.loads(kept.read_text())]
    words = transformers.AutoTokenizer.from_pretrained(folder / "base")
    draw, found = torch.Generator().manual_seed(1), dict[tuple[int, int], Question]()
    known = len(words)
    prompts = [
        torch.randint(2, known, (int(torch.randint(8, 65, (1,), generator=draw)),), generator=draw) for _ in range(each)
    ]
    for task, name in enumerate(names):
        model = dts.DTSModel.from_pretrained(folder / "base", adapters={name: folder / "adapters" / name})
        single = model.merge_and_unload(name).eval()
        for turn, prompt in enumerate(prompts):
            new, ids = tokens[(turn * len(names) + task) % len(tokens)], prompt[None]
            out = single.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
            text = words.decode(out[0, len(prompt) :].tolist(), skip_special_tokens=True)
            found[turn, task] = Question(name, tuple(prompt.tolist()), text, new)
    asked = [found[key] for key in sorted(found)]
    kept.write_text(json.dumps([asdict(one) for one in asked]))
    return asked


class Peft:
    """LoRAs of the same rank on the same layers, a batch of whole calls with a task a row: in this process, no HTTP."""

    def __init__(self, names: Sequence[str], size: Size = SMALL):
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=size.rank, target_modules=list(LINEAR), init_lora_weights=False)
        self.model: Any = get_peft_model(base_model(size), config, adapter_name=names[0])
        for name in names[1:]:
            self.model.add_adapter(name, config)
        self.model.eval()

    @torch.no_grad()
    def run(self, asked: Sequence[Question], rows: int) -> int:
        """Tokens that were asked for, ``rows`` questions at a time, those nearest in length together.  A call goes on
        until the longest answer of its rows has ended."""
        ordered = sorted(asked, key=lambda one: len(one.prompt))
        for at in range(0, len(ordered), rows):
            part = ordered[at : at + rows]
            batch = padded([one.prompt for one in part], 0, self.model.device, left=True)
            names, longest = [one.task for one in part], max(one.tokens for one in part)
            self.model.generate(**batch, max_new_tokens=longest, do_sample=False, adapter_names=names)
        return sum(one.tokens for one in asked)
