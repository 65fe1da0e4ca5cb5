"""A base and fine-tunes of a few thousand elements that together need all the format has; the fuzzer's and the golden
folders'."""

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

NAMES = (
    "body.0.weight",
    "body.0.bias",
    "norm.weight",
    "conv.weight",
    "mlp.experts",
    "embed.weight",
    "lm_head.weight",
    "steps",
)  # in the order a fine-tune draws them
CONFIG = {"architectures": ["Tiny"], "id2label": {"0": "no", "1": "yes", "2": "maybe"}, "num_labels": 3}
NOTHING = torch.tensor([float("nan"), -0.0, float("inf"), -float("inf"), 1e-45])  # no ordinary numbers


def base() -> dict[str, Tensor]:
    """The golden folders' base: a matrix, vectors, a convolution, experts, embeddings, an integer buffer."""
    stored = load_file(Path(__file__).with_name("golden") / "base.safetensors")
    return {name: stored[name] for name in NAMES}


def finetuned(seed: int = 1) -> dict[str, Tensor]:
    """Moved matrices and vectors, untouched rows, added rows, another integer buffer, a head, a tied output."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    tuned = {}
    for name, value in base().items():
        if name == "steps":
            tuned[name] = value + 1
        elif value.dim() < 2:
            tuned[name] = value + 0.01 * draw(value.shape)
        else:
            rows = value.shape[-2] if name == "mlp.experts" else value.shape[0]
            wide = value.shape[-1] if name == "mlp.experts" else value[0].numel()
            batch = value.shape[:1] if name == "mlp.experts" else ()
            tuned[name] = value + 0.05 * (draw(*batch, rows, 3) @ draw(*batch, 3, wide)).reshape(value.shape)
    tuned["embed.weight"][::3] = base()["embed.weight"][::3]
    tuned["embed.weight"] = torch.cat([tuned["embed.weight"], draw(2, 18)])
    tuned["lm_head.weight"] = tuned["embed.weight"]
    tuned["head.weight"], tuned["head.bias"] = draw(3, 20), draw(3)
    return tuned


def lightly(seed: int = 1, share: float = 0.1) -> dict[str, Tensor]:
    """`finetuned`, of which but for the experts a share of the elements moved, some to NaN, -0 and infinities."""
    before, tuned, draw = base(), finetuned(seed), torch.Generator().manual_seed(seed)
    for name, value in tuned.items():
        if name in before and value.shape == before[name].shape and name not in ("mlp.experts", "steps"):
            tuned[name] = torch.where(torch.rand(value.shape, generator=draw) < share, value, before[name])
    tuned["body.0.weight"].view(-1)[:5] = tuned["embed.weight"][-1, :5] = NOTHING
    tuned["head.bias"][0] = float("nan")
    return tuned
