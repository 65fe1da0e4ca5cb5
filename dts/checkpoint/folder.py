"""A Hugging Face folder as a checkpoint: which of its files is read, and what all others are."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dts.checkpoint.checkpoint import Checkpoint
from dts.checkpoint.errors import CheckpointError, NotRead, some
from dts.checkpoint.files import PICKLES, SHARD, from_file
from dts.checkpoint.foreign import ENDINGS, foreign
from dts.checkpoint.index import from_index
from dts.checkpoint.json_file import json_object, read_config
from dts.checkpoint.kinds import MERGE, WEIGHTS
from dts.checkpoint.trainer import checkpoints
from dts.sites.diffusers import class_name
from dts.warn import warn

DIFFUSERS = "diffusion_pytorch_model"
WEIGHT_FILES = tuple(  # each behind it the index of its shards
    f"{stem}{end}"
    for stem in ("model.safetensors", "pytorch_model.bin", f"{DIFFUSERS}.safetensors", f"{DIFFUSERS}.bin")
    for end in ("", ".index.json")
)
STEMS = ("model", "pytorch_model", DIFFUSERS)  # of shards
VARIANT = re.compile(rf"(?:{'|'.join(STEMS)})\.(?:(?:safetensors|bin)\.index\.)?(\w+)\.(?:safetensors|bin|json)")
# what trainers, and other programs in their own format, write beside the weights
BESIDE = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|trainer_state|sampler|"
    r"consolidated|custom_checkpoint|tokenizer|vocab|merges).*"
)


def weight_files(variant: str | None = None) -> list[str]:
    """The names transformers looks for, in its order, then diffusers': ``model.fp16.safetensors`` of the variant fp16.

    That of an index is ``model.safetensors.index.fp16.json`` with transformers and diffusers alike.
    """
    if not variant:
        return list(WEIGHT_FILES)
    return [f"{stem}.{variant}.{end}" for stem, _, end in (name.rpartition(".") for name in WEIGHT_FILES)]


def variants(folder: Path) -> list[str]:
    """Those of which a folder has weights by the names that `weight_files` gives them."""
    found = {match[1] for match in map(VARIANT.fullmatch, (path.name for path in folder.iterdir())) if match}
    return sorted(one for one in found if any((folder / name).is_file() for name in weight_files(one)))


def from_folder(folder: Path, variant: str | None = None) -> Checkpoint:
    """Raises CheckpointError for folders of other kinds, and for weights in it that nothing explains."""
    _refuse_other_kinds(folder)
    checkpoint = read_weights(folder, variant)
    config = folder / "config.json"
    if config.is_file():
        checkpoint.config = read_config(config)
    elif os.path.lexists(config):
        raise CheckpointError(f"{config} is a link to nothing, or no file: mend it, or move it away")
    for name in ("quantize_config.json", "quant_config.json", "hf_quant_config.json"):  # of AutoGPTQ, AWQ, ModelOpt
        if (folder / name).is_file():
            checkpoint.config = {"quantization_config": json_object(folder / name)} | (checkpoint.config or {})
    return checkpoint


def read_weights(folder: Path, variant: str | None = None) -> Checkpoint:
    """The tensors of a folder's own weight files, all others accounted for; without its config."""
    names = weight_files(variant)
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found and not variant and len(there := variants(folder)) == 1:
        return read_weights(folder, there[0])  # as a download of that variant alone leaves it
    if not found:
        found = [] if variant else sorted(path for path in folder.glob("*.safetensors") if path.is_file())
        if len(found) != 1 or SHARD.fullmatch(found[0].name):
            raise CheckpointError(_nothing(folder, names))
    if found[0].name in names and names.index(found[0].name) % 2:  # an index
        checkpoint = from_index(found[0])
        read = set(json_object(found[0])["weight_map"].values())
    else:
        checkpoint, read = from_file(found[0]), {found[0].name}
    checkpoint.source, checkpoint.folder = str(folder), folder
    _account(folder, found[0].name, read, checkpoint)
    return checkpoint


def stem_of(config: Mapping | None) -> str:
    """What the library that a ``config.json`` belongs to calls the file of the weights, without its ending."""
    return "model" if class_name(config) is None else DIFFUSERS


def has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHT_FILES)


def own_weights(folder: Path) -> list[str]:
    """Files that may be a model's, whatever they are called: not what trainers write beside it."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if name.endswith((".safetensors", *PICKLES)) and not BESIDE.match(name)]


def checkpoints_in(run: Path) -> list[Path]:
    """Those of a trainer's run; none of any other folder."""
    other = any((run / name).is_file() for name in ("adapter_config.json", "model_index.json"))
    return [] if other else checkpoints(run, holds_weights)


def _refuse_other_kinds(folder: Path) -> None:
    if (folder / "dts_config.json").exists():
        raise CheckpointError(f"{folder} is an adapter, not a model; a model is needed here (see `dts apply`)")
    if (folder / "adapter_config.json").is_file():
        kind = json_object(folder / "adapter_config.json")
        name = kind.get("peft_type") or "LoRA"
        base = kind.get("base_model_name_or_path")
        of = f" of {base}" if isinstance(base, str) and base else ""
        way = f"dts import lora {folder} makes an adapter of it; or {MERGE}" if name in ("LORA", "LoRA") else MERGE
        raise CheckpointError(f"{folder} is a {name} adapter (PEFT){of}, not a full fine-tune: {way}")
    if (folder / "model_index.json").is_file():
        index = json_object(folder / "model_index.json")
        parts = [key for key, value in index.items() if isinstance(value, list) and holds_weights(folder / key)]
        there = some(str(folder / part) for part in parts) or "none of which is here"
        raise CheckpointError(
            f"{folder} is a diffusers pipeline of several models: give one of its sub-models, {there}, and the same "
            "one of the other pipeline"
        )


def holds_weights(folder: Path) -> bool:
    return folder.is_dir() and any(file.suffix in (".safetensors", *PICKLES) for file in folder.iterdir())


def _nothing(folder: Path, names: list[str]) -> str:
    """Why there is no model in a folder, as well as its files tell, and what there is."""
    files = sorted(path.name for path in folder.iterdir())
    there = some(files, 30) or "nothing"
    if len(found := variants(folder)) > 1:
        return (
            f"{folder} has weights in the variants {some(found)}, and none without: give a folder with one of them, or "
            f"in Python variant={found[0]!r}"
        )
    shards = [match for match in map(SHARD.fullmatch, files) if match]
    if shards:
        total = int(shards[0][3])
        have = {int(match[2]) for match in shards if match[3] == shards[0][3]}
        lost = [i for i in range(1, total + 1) if i not in have]
        what = (
            f"{len(lost)} of {total} shards are missing: {some(f'{i:05d}' for i in lost)}"
            if lost
            else f"all {total} shards are there, but the index that names their tensors is not"
        )
        return f"{folder} is incomplete: {what}.  Download it again; there is: {there}"
    hints = []
    if any(name.startswith("global_step") or name == "zero_to_fp32.py" or "_model_states.pt" in name for name in files):
        hints.append("it has DeepSpeed's shards: run its zero_to_fp32.py, and give what that writes")
    if any(name.endswith(".distcp") or name.startswith("pytorch_model_fsdp") for name in files):
        hints.append(f"it has FSDP's shards: {ENDINGS['.distcp'][1]}")
    if not hints and any(re.match(r"optimizer|scheduler(?!_config)|rng_state|trainer_state", name) for name in files):
        hints.append(f"it has a trainer's state only: {WEIGHTS}")
    safetensors = [name for name in files if name.endswith(".safetensors")]
    if len(safetensors) > 1:
        hints.append(f"it has several weight files: give one of them, such as {folder / safetensors[0]}")
    for name in files:
        if (folder / name).suffix.lower() in ENDINGS and (folder / name).is_file():
            hints.append(foreign(folder / name) or "")
    pickles = [name for name in files if name.endswith(PICKLES) and not BESIDE.match(name)]
    if not hints and pickles:
        hints.append(f"give the file itself, such as {folder / pickles[0]}")
    hint = "; ".join(dict.fromkeys(filter(None, hints[:4])))
    wanted = " or ".join(name for name in names if not name.endswith(".json"))
    hint = hint or "give the folder that save_pretrained() wrote, or a file of weights"
    return f"{folder} has no {wanted}, whole or in shards with their index; {hint}; there is: {there}"


def _account(folder: Path, main: str, read: set[str], checkpoint: Checkpoint) -> None:
    """Each weight file beside those read is the same tensors again, a trainer's, or an error."""
    wrong = []
    for path in sorted(folder.iterdir()):
        name = path.name
        if name in read or path.suffix not in (".safetensors", *PICKLES) or BESIDE.match(name) or not path.is_file():
            continue
        shard = SHARD.fullmatch(name)
        other_format = not any(file.endswith(path.suffix) for file in read)
        if shard and not other_format and not shard[4] and _stem(shard[1]) in STEMS:
            wrong.append(f"{name}: a shard that {main} does not name")
            continue
        if shard and (other_format or path.suffix == ".safetensors") and _other_index(folder, shard, checkpoint):
            continue
        only, why = _not_among(path, checkpoint)
        if why:
            checkpoint.notes.append(
                f"{folder}: {', '.join(sorted(read)[:3])} was read, and {name} beside it was not ({why})"
            )
        elif only and other_format and (name.startswith("pytorch_model") or shard):
            checkpoint.notes.append(
                f"{folder}: {', '.join(sorted(read)[:3])} was read, and {name} beside it, with "
                f"other tensors ({some(only, 3)}), was not"
            )
        elif only:
            wrong.append(f"{name}: {len(only)} tensors that {main} does not have, {some(only, 3)}")
    if wrong:
        raise CheckpointError(
            f"{folder} has weights that are no part of the model in {main}:\n  "
            + "\n  ".join(wrong)
            + "\n  Move away what does not belong to it, or write it anew with save_pretrained()"
        )
    for note in checkpoint.notes:
        warn(note, NotRead)


def _stem(name: str) -> str:
    return name.rpartition("/")[2]


def _other_index(folder: Path, shard: re.Match, checkpoint: Checkpoint) -> bool:
    """Does another index of the folder name this shard, and only tensors that were read?"""
    for index in folder.glob("*.index*.json"):
        where = json_object(index).get("weight_map")
        if isinstance(where, dict) and shard.string in where.values():
            return set(where) <= set(checkpoint.tensors)
    return False


def _not_among(path: Path, checkpoint: Checkpoint) -> tuple[list[str], str | None]:
    """Names (or names of another shape) of a file that the model does not have; why, where it cannot be told."""
    try:
        other = from_file(path, shard=True)
    except CheckpointError as error:
        return [], str(error).removeprefix(f"{path} ")
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    return [name for name, tensor in other.tensors.items() if shapes.get(name) != tensor.shape], None


def relative_files(folder: Path, patterns: Iterable[str]) -> dict[str, Path]:
    """Place below the folder -> path of the files that match."""
    return {
        str(path.relative_to(folder)): path
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }
