"""Tiny random models on disk with adapters and a tokenizer of bytes, and the single-task models to equal.

The same files for the engine, for HTTP and for a server process.
"""

from functools import cache
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

import dts  # noqa: E402
from benchmarks.serving import made  # noqa: E402
from benchmarks.serving.made import changed  # noqa: E402
from dts.serve.options import Options  # noqa: E402
from dts.serve.start import serve  # noqa: E402

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
PAD, END = 0, 1


def tokenizer(chat: str | None = None):
    """A token a byte, after <pad> and <end>."""
    found = made.tokenizer()
    found.chat_template = chat
    return found


class Place:
    """base, adapters: folders;  tasks: names."""

    def __init__(self, root: Path, tasks: list[str]):
        self.base, self.adapters, self.tasks = root / "base", root / "adapters", tasks
        self.single = cache(self._single)

    def _single(self, *weights):
        """The model of one task, of a mixture as (task, weight)..., or the base: dense, as transformers runs it."""
        names = [name for name, _ in weights]
        found = {name: self.adapters / name for name in names or self.tasks[:1]}
        model = dts.DTSModel.from_pretrained(self.base, adapters=found)
        return model.merge_and_unload(dict(weights) if weights else None).eval()


@pytest.fixture(scope="session")
def decoder(tmp_path_factory) -> Place:
    """A Llama with tasks a, b and c."""
    place = Place(tmp_path_factory.mktemp("decoder"), ["a", "b", "c"])
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    ids = dict(bos_token_id=None, eos_token_id=END, pad_token_id=PAD)
    config = transformers.LlamaConfig(vocab_size=258, max_position_embeddings=128, **sizes, **ids)
    base = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    base.save_pretrained(place.base)
    tokenizer(CHAT).save_pretrained(place.base)
    for seed, name in enumerate(place.tasks, 1):
        changed(base, seed).save_pretrained(place.base.parent / name)
        dts.compress(place.base, place.base.parent / name, out=place.adapters / name, rank_fraction=0.5)
    return place


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Place:
    """A BERT without a head, with tasks of 2 and of 3 classes."""
    place = Place(tmp_path_factory.mktemp("encoder"), ["mood", "topic"])
    torch.manual_seed(1)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.BertConfig(vocab_size=258, max_position_embeddings=64, pad_token_id=PAD, **sizes)
    transformers.BertModel(config).save_pretrained(place.base)
    tokenizer().save_pretrained(place.base)
    for seed, (name, classes) in enumerate({"mood": ["sad", "glad"], "topic": ["sport", "news", "art"]}.items()):
        labels = dict(enumerate(classes))
        tuned = transformers.BertForSequenceClassification.from_pretrained(place.base, id2label=labels)
        changed(tuned, seed).save_pretrained(place.base.parent / name)
        dts.compress(place.base, place.base.parent / name, out=place.adapters / name, rank_fraction=0.5)
    return place


@pytest.fixture
def start():
    """Starts engines that end with the test."""
    engines = []

    def make(place, run=True, **options):
        served = serve(Options(str(place.base), place.adapters, **{"device": "cpu"} | options))
        engines.append(served.engine)
        if run:
            served.engine.start()
        return served

    yield make
    for engine in engines:
        assert engine.drain(30)
