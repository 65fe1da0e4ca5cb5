"""What two configs say differently of how a model computes: frequencies of positions, heads, activations, constants.

An adapter changes weights.  A fine-tune that was trained under other constants than its base (Code Llama's frequencies
are not Llama's) runs under the base's wherever the base's modules run it, and answers as neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

# fields that change no answer of a model with the same tensors: names, sizes that tensors have, labels and tokens,
# training, what is returned, and which of several equal ways is taken
HARMLESS = re.compile(
    r"_.*|name_or_path|architectures|auto_map|transformers_version|unsloth.*|(torch_)?dtype|use_bfloat16|torchscript|"
    r"id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params|prefix|vocab_size|"
    r".*_token_ids?|.*_token_index|max_position_embeddings|tie_.*|quantization_config|attn_implementation|use_cache|"
    r"cache_implementation|return_dict.*|output_.*|chunk_size_.*|pretraining_tp|use_mambapy|use_associative_scan|"
    r"gradient_checkpointing|initializer_.*|init_.*|.*_init|.*_init_.*|rescale_prenorm_residual|.*drop.*|"
    r".*_loss.*|.*_aux_.*|router_jitter_noise|apply_spec_augment|mask_(time|feature)_.*|ctc_.*|num_negatives|"
    r"contrastive_logits_temperature"
)
LISTED = 8  # differences that are said


class OtherConfig(UserWarning):
    """A fine-tune's config has its model compute otherwise than its base's."""


def otherwise(base: Mapping[str, Any] | None, tuned: Mapping[str, Any] | None) -> str:
    """ "rope_theta is 1000000.0, the base's 10000.0; ...", nothing where two ``config.json`` compute alike.

    Fields that one of them leaves out have what transformers gives them, where it knows the model; else they are not
    compared.  A config of a part alone (another model_type beside others of its own) says nothing of the whole.
    """
    if not base or not tuned or bool(_parts(base)) != bool(_parts(tuned)):
        return ""
    try:
        one, other = (json.dumps(_told(config), sort_keys=True) for config in (base, tuned))
    except (TypeError, ValueError):  # of what is no JSON nothing can be said
        return ""
    return "" if one == other else _compared(one, other)


@lru_cache(16)
def _compared(base: str, tuned: str) -> str:
    """The same of two that differ, as text: tasks of one base have as a rule one config."""
    ours, theirs = (dict(_flat(_told(_whole(json.loads(text))))) for text in (base, tuned))
    wrong = [
        f"{name} is {theirs[name]!r:.80}, the base's {value!r:.80}"
        for name, value in ours.items()
        if name in theirs and theirs[name] != value
    ]
    more = f"; and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
    return "; ".join(wrong[:LISTED]) + more


def _parts(config: Mapping[str, Any]) -> list[str]:
    return [key for key, value in config.items() if key.endswith("_config") and isinstance(value, Mapping)]


def _told(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is harmless, in its parts too."""
    return {
        key: _told(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if not HARMLESS.fullmatch(str(key))
    }


def _whole(config: dict[str, Any]) -> dict[str, Any]:
    """With what transformers' class has for fields that are not there; as it is where there is no such class."""
    try:
        from transformers import CONFIG_MAPPING, GenerationConfig
        from transformers.utils import logging
    except ImportError:
        return config
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        found = CONFIG_MAPPING[config["model_type"]].from_dict(config).to_dict()
    except Exception:  # a type that it does not know, or values that it does not take
        return config
    finally:
        logging.set_verbosity(before)
    generation = GenerationConfig().to_dict()  # once a part of such files; they have one of their own
    return {key: value for key, value in found.items() if key not in generation}


def _flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, list(value) if isinstance(value, tuple) else value
