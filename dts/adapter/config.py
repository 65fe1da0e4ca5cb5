"""``dts_config.json`` of an adapter that is being made, before its tensors are known; docs/format.md has every key."""

import re
from pathlib import Path
from typing import Any

from dts import __version__
from dts.adapter.carried import about_file
from dts.adapter.digests import FORMAT_VERSION
from dts.adapter.folder import plain_config
from dts.adapter.modules import differing_modules
from dts.adapter.options import Options
from dts.adapter.text import dtype_name
from dts.checkpoint import Checkpoint, Pairing, fingerprint
from dts.checkpoint.files import split_state
from dts.files import real


def config_of(
    pairing: Pairing, options: Options, base_digests: dict[str, str], files: dict[str, Path]
) -> dict[str, Any]:
    """Everything but ``tensors`` and what follows from them.

    base_digests: of all tensors of the base, by name;  files: those carried, by name.
    """
    task = {
        "name": options.name or _source_name(pairing.finetuned),
        "class_names": options.class_names or _class_names(with_text_labels(pairing.finetuned.config)),
        "description": options.description,
    }
    config = {
        "format_version": FORMAT_VERSION,
        "method": options.choice.name,
        "kind": options.kind,
        "base": _about_base(pairing.base, base_digests),
        "finetuned": _about_finetuned(pairing),
        "task": task,
        "squared_error": 0.0,
        "bytes": 0,
        "amr": 0.0,
        "created": {"package": "dts-merge", "version": __version__, "command": options.told},
        "dropped": {},
        "files": {name: about_file(path) for name, path in files.items()},
        "model_config": plain_config(with_text_labels(pairing.finetuned.config)),
        "tensors": {},
    }
    if (modules := differing_modules(pairing.base, pairing.finetuned)) is not None:
        config["modules"] = modules
    return config


def _about_base(base: Checkpoint, base_digests: dict[str, str]) -> dict:
    how = {} if base.quantised is None else {"quantised": base.quantised}
    return how | {
        "name": _source_name(base),
        "revision": base.revision,
        "dtype": dtype_name(base.main_dtype),
        "bytes_per_element": base.main_dtype.itemsize,
        "parameters": base.parameters,
        "fingerprint": fingerprint(base, base_digests),
    }


def _about_finetuned(pairing: Pairing) -> dict:
    """How the fine-tune's names and dtypes follow from the base's; exceptions one by one."""
    base, finetuned = pairing.base, pairing.finetuned
    main, base_main = finetuned.main_dtype, base.main_dtype
    dtypes = {
        p.name: dtype_name(finetuned.dtype(p.name))
        for p in pairing.pairs.values()
        if p.base_name
        and not p.tied_to
        and finetuned.dtype(p.name) != (main if base.dtype(p.base_name) == base_main else base.dtype(p.base_name))
    }
    return {
        "name": _source_name(finetuned),
        "dtype": dtype_name(main),
        "base_prefix": pairing.base_prefix,
        "prefix": pairing.finetuned_prefix,
        "renamed": pairing.renamed,
        "base_only": pairing.base_only,
        "dtypes": dtypes,
    }


def _source_name(checkpoint: Checkpoint) -> str:
    """A hub id, also that of a folder in a hub's cache, or the last part of a path."""
    path = Path(split_state(checkpoint.source)[0])
    if cached := re.search(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/[0-9a-f]+(/.+)?$", path.absolute().as_posix()):
        return f"{cached[1]}/{cached[2]}{cached[3] or ''}"
    return checkpoint.source if checkpoint.revision or not path.exists() else real(path).name


def with_text_labels(config: dict | None) -> dict | None:
    """A config whose labels are text, as those that are numbers are read: {"0": 1} -> {"0": "1"}."""
    labels = (config or {}).get("id2label")
    if config is None or not isinstance(labels, dict):
        return config
    numbers = {i: str(label) for i, label in labels.items() if isinstance(label, int | float)}
    return config | {"id2label": labels | numbers} if numbers else config


def _class_names(config: dict | None) -> list[str] | None:
    """The labels a config names, unless they are only LABEL_0, LABEL_1, ..."""
    labels = {int(i): label for i, label in ((config or {}).get("id2label") or {}).items()}
    names = [labels[i] for i in sorted(labels)]
    return names if names and not all(name == f"LABEL_{i}" for i, name in enumerate(names)) else None
