"""A small Llama and two full fine-tunes of it, for the commands on serving language models.

    python examples/chat.py chat          writes chat/base and its fine-tunes chat/rhyme and chat/prose
Each learns one text by heart, a byte a token; the base both, as far as they are alike.
"""

import copy
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, logging

TEXTS = {
    "rhyme": "Once a mouse in coat and hat saw a moon and called it cat. ",
    "prose": "Once there was a server that held a base and fifty tasks. ",
}

logging.set_verbosity_error()
logging.disable_progress_bar()


def make_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(["<pad>", "<end>", *letters])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


def learned(model: LlamaForCausalLM, rows: torch.Tensor, steps: int) -> LlamaForCausalLM:
    """A copy all of whose weights were trained on these rows of ids [rows, length]."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


if __name__ == "__main__":
    folder, tokenizer = Path(sys.argv[1]), make_tokenizer()
    rows = {name: torch.tensor([tokenizer(text).input_ids]) for name, text in TEXTS.items()}
    torch.manual_seed(0)
    sizes = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=1, pad_token_id=0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **ids, num_key_value_heads=2, max_position_embeddings=256))
    for row in rows.values():
        model = learned(model, row, 30)
    for name, made in {"base": model, **{name: learned(model, row, 60) for name, row in rows.items()}}.items():
        made.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
