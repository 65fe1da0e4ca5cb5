"""A small base of transformers, a fine-tune of it, adapters, and the base quantised by real libraries.

`make quantised` runs what is here: torchao and bitsandbytes are not needed for anything else.
"""

import copy
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import transformers  # noqa: E402

import dts  # noqa: E402

SIZES = {  # multiples of 64: blocks of 4-bit kernels
    "llama": (
        "LlamaForCausalLM",
        dict(vocab_size=96, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4),
    ),
    "gpt2": ("GPT2LMHeadModel", dict(vocab_size=96, n_embd=128, n_layer=2, n_head=4, n_positions=32)),
    "bert": (
        "BertForSequenceClassification",
        dict(vocab_size=96, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4),
    ),
}
FAST = dict(method="paper", rank_fraction=0.4)
CLOSE = dict(method="residual", budget=0.3)
HEADS = ["lm_head", "classifier"]


def torchao_config(bits: int):
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    four = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    return transformers.TorchAoConfig(Int8WeightOnlyConfig() if bits == 8 else four)


def bitsandbytes_config(**options):
    return transformers.BitsAndBytesConfig(llm_int8_skip_modules=HEADS, **options)


QUANTISERS = {
    "torchao int8": lambda: torchao_config(8),
    "torchao int4": lambda: torchao_config(4),
    "bitsandbytes int8": lambda: bitsandbytes_config(load_in_8bit=True),
    "bitsandbytes nf4": lambda: bitsandbytes_config(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes nf4, nested": lambda: bitsandbytes_config(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
}


@dataclass
class Family:
    """Folders of the base, of its fine-tune, and of one whose norms and biases are the base's; adapters of both."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def tuned(self) -> Path:
        return self.folder / "tuned"

    def quantised(self, kind: str) -> Path:
        """The folder of the quantised base."""
        path = self.folder / kind.replace(" ", "-")
        if not path.exists():
            self.load(kind).save_pretrained(path)
        return path

    def load(self, kind: str):
        cls = getattr(transformers, transformers.AutoConfig.from_pretrained(self.base).architectures[0])
        return cls.from_pretrained(self.base, quantization_config=QUANTISERS[kind]()).eval()

    def dense(self, folder: Path | None = None):
        cls = getattr(transformers, transformers.AutoConfig.from_pretrained(self.base).architectures[0])
        return cls.from_pretrained(folder or self.base).eval()


def make(folder: Path, architecture: str, sizes: dict, moved: float = 0.02) -> Family:
    torch.manual_seed(0)
    cls = getattr(transformers, architecture)
    base = cls(cls.config_class(**sizes))
    with torch.no_grad():
        for p in base.parameters():  # norms and biases that tell this model from any other
            p += 0.05 * torch.randn_like(p) if p.dim() < 2 else 0
    base.save_pretrained(folder / "base")
    tuned, frozen = copy.deepcopy(base), copy.deepcopy(base)
    with torch.no_grad():
        for model in (tuned, frozen):
            for name, p in model.named_parameters():
                low = p.dim() == 2 and min(p.shape) > 4
                change = torch.randn(p.shape[0], 2) @ torch.randn(2, p.shape[1]) / 2 if low else torch.randn(p.shape)
                if model is tuned or low and re.search(r"\.(layers?|h)\.\d", name):
                    p += moved * change
    tuned.save_pretrained(folder / "tuned")
    frozen.save_pretrained(folder / "frozen")
    dts.compress(folder / "base", folder / "tuned", out=folder / "adapter", **FAST)
    dts.compress(folder / "base", folder / "frozen", out=folder / "adapter-frozen", **FAST)
    return Family(folder)


@pytest.fixture(scope="session", params=list(SIZES))
def family(request, tmp_path_factory) -> Family:
    return make(tmp_path_factory.mktemp(request.param), *SIZES[request.param])


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Family:
    return make(tmp_path_factory.mktemp("llama"), *SIZES["llama"])


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Family:
    """One whose adapters can be close enough for quantisation to be what is left."""
    sizes = SIZES["llama"][1] | dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    return make(tmp_path_factory.mktemp("small"), "LlamaForCausalLM", sizes)


@pytest.fixture(scope="session")
def close(small):
    """The adapter of `small` that was made for the base as it was."""
    return dts.compress(small.base, small.tuned, out=small.folder / "close", **CLOSE)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def batch() -> torch.Tensor:
    return torch.randint(0, 96, (4, 7), generator=torch.Generator().manual_seed(1))
