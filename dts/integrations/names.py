"""The names that a transformers class loads, so that what is written has them."""

from __future__ import annotations

from functools import lru_cache


def loadable(config: dict | None) -> tuple[frozenset[str], str] | None:
    """(names of the tensors of the class a config names, the prefix of its body).

    The class is built without memory.  None where that is not known: no config, no class of transformers, or
    transformers is not installed.
    """
    names = (config or {}).get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(config.get("model_type"), str):
        return None
    import json

    try:
        return _loadable(json.dumps(config, sort_keys=True))
    except Exception:  # a config that transformers cannot build from: then the names are judged by the base's alone
        return None


@lru_cache(maxsize=8)
def _loadable(text: str) -> tuple[frozenset[str], str] | None:
    import json

    import torch
    import transformers

    config = json.loads(text)
    cls = getattr(transformers, config["architectures"][0], None)
    if cls is None:
        return None
    with torch.device("meta"):
        model = cls(cls.config_class.from_dict(config))
    return frozenset(model.state_dict()), model.base_model_prefix
