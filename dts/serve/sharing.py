"""Which rows may share a whole call so that none changes another's answer: tried when the server starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dts.nn import DTSModel
from dts.serve.encode import padded

Sharing = Literal["any", "length", "none"]  # rows of any lengths, of one length, none: a row a call
SAID = {"length": "of one length", "none": "alone"}
Said = tuple[list[int], Tensor]  # a row's tokens, and what made each: logits, or the states of a pass
Say = Callable[[Any, Sequence[Sequence[int]], int], list[Said]]
TOKENS = 5  # new ones of a trial: what a state takes from another row shows after some


def moving_positions(base: nn.Module) -> list[nn.Module]:
    """Rotary embeddings whose frequencies follow the longest row of a call: transformers' dynamic NTK and LongRoPE."""
    found = []
    for module in base.modules():
        kind = getattr(module, "rope_type", None)
        kinds = kind.values() if isinstance(kind, dict) else [kind]
        if any(isinstance(one, str) and ("dynamic" in one or one == "longrope") for one in kinds):
            found.append(module)
    return found


def as_new(rotary: Sequence[nn.Module]) -> None:
    """Frequencies that a longer call before left go: a dynamic one keeps them for calls that are shorter, but beyond
    the length that it was trained for."""
    for module in rotary:
        most = getattr(module, "original_max_seq_len", None)
        for name in [one for one in vars(module) if one.endswith("max_seq_len_cached")]:
            prefix = name.removesuffix("max_seq_len_cached")
            original = getattr(module, f"{prefix}original_inv_freq", None)
            if most is not None and original is not None and getattr(module, name) > most:
                module.register_buffer(
                    f"{prefix}inv_freq", original.to(module.get_buffer(f"{prefix}inv_freq").device), persistent=False
                )
                setattr(module, name, most)


@torch.no_grad()
def sharing(model: DTSModel, pad: int, generates: bool) -> Sharing:
    """Tried on the base, with rows of 9 tokens and of one, which is shorter than any convolution, then of 9
    and 9, beside each alone.

    generates: answers are whole calls of ``generate``; else one pass is tried.
    """
    base: Any = model.model
    if moving_positions(base):
        return "length"
    say = _generated if generates else _passed
    draw = torch.Generator().manual_seed(0)
    try:
        tokens = base.get_input_embeddings().num_embeddings
        long, short, other = (torch.randint(tokens, (n,), generator=draw).tolist() for n in (9, 1, 9))
        alone = [say(base, [row], pad)[0] for row in (long, short)]
    except Exception:  # a model that takes something else: whoever asks it is told
        return "any"
    if _alike(base, say, [long, short], pad, alone):
        return "any"
    alone[1:] = say(base, [other], pad)
    return "length" if _alike(base, say, [long, other], pad, alone) else "none"


def _alike(base: Any, say: Say, rows: list[list[int]], pad: int, alone: list[Said]) -> bool:
    """Whether a call of these rows says what a call of each says."""
    try:
        together = say(base, rows, pad)
    except Exception:  # whatever a model does with rows that it cannot have together
        return False
    for (tokens, found), (own, expected) in zip(together, alone):
        same = next((i for i, (a, b) in enumerate(zip(tokens, own)) if a != b), len(found) - 1) + 1
        if not near(found[:same] - expected[:same], expected, base.dtype):
            return False
    return True


def near(difference: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether a model that computes in ``dtype`` may differ by this from what is expected and still say the same."""
    allowed = 1e-3 if dtype in (torch.float32, torch.float64) else 0.05
    return bool(difference.abs().max() <= allowed * expected.abs().max())


def _generated(base: Any, rows: Sequence[Sequence[int]], pad: int) -> list[Said]:
    apart = base.config.is_encoder_decoder
    batch = padded(rows, pad, base.device, left=not apart)
    how: dict[str, Any] = dict(do_sample=False, num_beams=1, min_new_tokens=TOKENS, max_new_tokens=TOKENS)
    out = base.generate(**batch, **how, pad_token_id=pad, output_logits=True, return_dict_in_generate=True)
    logits, tokens = torch.stack(out.logits, 1).float(), out.sequences[:, -TOKENS:].tolist()
    return list(zip(tokens, logits))


def _passed(base: Any, rows: Sequence[Sequence[int]], pad: int) -> list[Said]:
    states = base.base_model(**padded(rows, pad, base.device)).last_hidden_state.float()
    return [([], own[: len(row)]) for row, own in zip(rows, states)]
