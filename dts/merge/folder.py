"""The merged model on disk: a Hugging Face folder with its configuration, tokenizer and card."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from dts import __version__
from dts.adapter.code import copy_code
from dts.adapter.modules import by_part, modules_of, write_modules
from dts.adapter.tokenizer import text_files
from dts.checkpoint import Checkpoint, write_safetensors
from dts.checkpoint.folder import stem_of
from dts.checkpoint.vocabulary import resized
from dts.files import Watch, building, check_place, real

from .registry import Method
from .sources import Sources

OF_ONE_TASK = ("architectures", "id2label", "label2id", "problem_type", "finetuning_task")


def write_folder(
    out: Path,
    sources: Sources,
    layout: dict,
    load: Callable[[str], Tensor],
    method: Method,
    options: dict,
    seed: int,
    watch: Watch,
) -> Path:
    """Write the whole folder beside ``out`` and rename it, so that an interrupted merge leaves nothing half-written.

    A model in several modules (sentence-transformers) is written as one, each module's weights in its own folder.
    """
    reference = sources.reference
    with building(out, lambda: check_merged(out)) as place:
        partial = place.fresh()
        write_modules(modules_of(reference), partial)
        for inner, names in by_part(reference, list(layout)).items():
            (partial / inner).mkdir(parents=True, exist_ok=True)
            write_safetensors(
                partial / inner / f"{stem_of(reference.config)}.safetensors",
                {own: layout[name] for own, name in names.items()},
                lambda own, names=names: load(names[own]),
                {"format": "pt"},
                lambda own, names=names: reference.release(names[own]),
            )
        own = partial / reference.part_of("")[0]  # of the transformer, where the model has several modules
        origin = next((c.folder for c in (sources.base, *sources.models) if c and c.folder), None)
        if origin:
            _copy(origin, own)
        if sources.base is not None:
            copy_code(sources.base, own)
        if sources.enlarged_by is not None and sources.enlarged_by.folder:
            _copy(sources.enlarged_by.folder, own)  # its tokenizer, which knows the added rows; the config follows
        config = _config(sources)
        if config:
            (own / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (partial / "README.md").write_text(card(real(out).name, sources, method, options, seed), "utf-8")
        watch.check()
        place.finish()
    return out


def check_merged(out: Path) -> None:
    """Raises FileExistsError for a folder that holds anything."""
    check_place(out, False, "empty", lambda folder: False)


def _copy(folder: Path, to: Path) -> None:
    config = folder / "config.json"
    for file in [*text_files(folder), *([config] if config.is_file() else [])]:
        shutil.copyfile(file, to / file.name)


def _config(sources: Sources) -> dict:
    """The base's configuration; a fine-tune's without its head and labels, where there is no base.

    Where a model's added rows are kept, the sizes of its vocabulary.
    """
    if sources.base is not None and sources.base.config:
        config = sources.base.config
    else:
        found = next((m.config for m in sources.models if m.config), {})
        config = {key: value for key, value in found.items() if key not in OF_ONE_TASK}
    if config and sources.enlarged_by is not None:
        before = {sources.reference.shape(name)[0]: sources.shape(name)[0] for name in sources.added}
        config = resized(config, before)
    return config


def card(name: str, sources: Sources, method: Method, options: dict, seed: int) -> str:
    """What was merged and how, enough to do it again."""
    models = [_source(m) for m in sources.models]
    base = "none" if sources.base is None else _source(sources.base)
    lines = [
        "---",
        "library_name: transformers",
        "tags: [model-merging, dts]",
        "---",
        f"# {name}",
        "",
        f"{len(models)} models merged with `{method.name}` ({method.paper}) by dts {__version__}.",
        "",
        f"{method.summary}",
        "",
        "```json",
        json.dumps({"method": method.name, "options": options, "seed": seed, "base": base, "models": models}, indent=2),
        "```",
    ]
    if sources.left:
        stays = "the base's" if sources.base else "left out"
        lines += ["", f"Tensors that were not merged ({stays}):", ""]
        lines += [f"- `{tensor}`: {why}" for tensor, why in sources.left.items()]
    return "\n".join(lines) + "\n"


def _source(checkpoint: Checkpoint) -> str:
    return checkpoint.source + (f"@{checkpoint.revision}" if checkpoint.revision else "")
