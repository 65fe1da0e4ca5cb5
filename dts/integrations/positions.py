"""How many tokens a row of a model may have."""

from typing import Any

from torch import nn


def positions(model: nn.Module) -> int | None:
    """As the config says, less the first positions that RoBERTa and its kind never use: theirs start behind that of
    padding.  None where the config says nothing."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    stated = getattr(text, "max_position_embeddings", None)
    if not isinstance(stated, int) or isinstance(stated, bool) or stated < 1:
        return None
    tables = [
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "position_embeddings"
        and isinstance(module, nn.Embedding)
        and module.padding_idx is not None
        and module.num_embeddings == stated
    ]
    return max(1, min([stated, *tables]))
