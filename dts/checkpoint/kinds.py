"""Sources that hold tensors and are yet no model: adapters, optimizer states, quantised weights, odd tensors."""

import re
from collections.abc import Mapping

from dts.checkpoint.errors import CheckpointError, Quantised, some
from dts.checkpoint.quantised import quantised
from dts.checkpoint.safetensors_file import NAMES, ODD

MERGE = (
    "merge it into its base first: PeftModel.from_pretrained(base, folder).merge_and_unload(), then "
    "save_pretrained(), and give the merged model"
)
LEARNED = "it adds learned inputs or scales and has no full weights; only full fine-tunes can be given"
# what a name of its tensors has in it -> the adapter, and what to do; the names are those of peft, kohya and LyCORIS
ADAPTERS = {
    r"lora_magnitude_vector|dora_scale": ("a DoRA adapter", MERGE),
    r"(^|\.)lora_(A|B|embedding_A|embedding_B|down|up)(\.|$)|^lora_(unet|te\d?|transformer)_": ("a LoRA", MERGE),
    r"(^|\.)vera_lambda_": ("a VeRA adapter", MERGE),
    r"(^|\.)hada_w[12]_[ab](\.|$)": ("a LoHa adapter", MERGE),
    r"(^|\.)lokr_w[12](_[ab])?(\.|$)": ("a LoKr adapter", MERGE),
    r"(^|\.)(oft_[rsR]|boft_[RrsS])(\.|$)": ("an OFT adapter", MERGE),
    r"(^|\.)ia3_l(\.|$)": ("an IA3 adapter", MERGE),
    r"^(.*\.)?prompt_encoder\.\w+\.embedding\.|^prompt_embeddings$": ("a prompt-tuning adapter", LEARNED),
    r"\.base_layer\.(weight|bias)$": ("a PEFT model with unmerged adapters", MERGE),
    r"\.modules_to_save\.\w+\.": ("a PEFT model with unmerged adapters", MERGE),
}
OPTIMIZER = r"(^|\.)(exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|square_avg)(\.|$)"
WEIGHTS = "give the model's own weights, which the trainer saved beside it"


def adapter_kind(names) -> tuple[str, str, list[str]] | None:
    """(what the adapter is, what to do, the names that tell), if these are an adapter's names or have one's in them."""
    for pattern, (what, to_do) in ADAPTERS.items():
        told = [name for name in names if re.search(pattern, name)]
        if told:
            return what, to_do, told
    return None


def check_kind(source: str, tensors: Mapping, config: Mapping | None) -> None:
    """Raises CheckpointError of everything that makes these tensors no floating-point model.

    tensors: name -> anything with ``shape`` and ``dtype``;  config: ``config.json``.
    """
    wrong = []
    told = adapter_kind(tensors)
    # a model built with adapters of its own (Phi-4 multimodal) says so in its config
    if told and not any("lora" in str(key).lower() for key in config or ()):
        what, to_do, names = told
        wrong.append(f"{source} is {what} ({some(names, 3)}): {to_do}")
    moments = [name for name in tensors if re.search(OPTIMIZER, name)]
    if moments:
        wrong.append(f"{source} is an optimizer's state ({some(moments, 3)}): {WEIGHTS}")
    codes = quantised(tensors, config)
    if codes:
        wrong.append(f"{source} is {codes}")
    elif odd := {name: t.dtype for name, t in tensors.items() if t.dtype not in NAMES or t.dtype in ODD}:
        kinds = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in odd.values()}))
        wrong.append(f"{source} has {kinds} tensors, which cannot be stored: {some(odd)}")
    if bad := [name for name in tensors if bad_name(name)]:
        wrong.append(f"{source} has tensors whose names are empty or have control characters: {some(map(repr, bad))}")
    if wrong:
        kind = Quantised if codes and len(wrong) == 1 else CheckpointError
        raise kind("\n  ".join(wrong))


def bad_name(name) -> bool:
    """Names that no module can have: empty, or with NUL and other control characters."""
    return not isinstance(name, str) or not name or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name)
