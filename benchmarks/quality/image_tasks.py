"""Image-classification tasks of ../shared/data/images, read by the reader that lies beside the data."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import random
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from dts.demo.tasks import MissingData

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1], as DINOv2 was trained


@dataclass(frozen=True)
class ImageTask:
    """One task: square images uint8 [N, size, size, 3] and labels int64 [N] of a training and a test set."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    class_names: list[str]
    source: str
    licence: str

    @functools.cached_property
    def digest(self) -> str:
        """A hash over everything a fine-tune depends on: training images, labels and class names."""
        images, labels = self.train
        content = hashlib.sha256(images.numpy().tobytes())
        content.update(json.dumps([labels.tolist(), self.class_names]).encode())
        return content.hexdigest()


def shared_data() -> Path:
    """`../shared/data` beside the project."""
    return Path(__file__).resolve().parents[3] / "shared" / "data"


def module_of(path: Path) -> ModuleType:
    """The Python file at `path`, imported from where it lies.  MissingData if it is not there."""
    if not path.is_file():
        raise MissingData(f"{path} is missing; the suites need the data sets beside the checkout")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(name: str, size: int, train: int, folder: Path | None = None) -> ImageTask:
    """Task `name` with images of size x size pixels and at most `train` training images, the same ones each time.

    MissingData, with the names there are, if there is no such task.
    """
    folder = folder or shared_data()
    info_path = folder / "images" / "info.json"
    info = json.loads(info_path.read_text(encoding="utf-8")) if info_path.is_file() else {}
    path = folder / "images" / f"{name}.npz"
    if name not in info or not path.is_file():
        raise MissingData(f"{path.parent} has no data for {name}; it has {', '.join(sorted(info)) or 'nothing'}")
    reader = module_of(folder / "load.py")
    images, labels, classes = reader.load_images(path, size=size, split="train")
    chosen = sorted(random.Random(name).sample(range(len(labels)), min(train, len(labels))))
    trained = (torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]))
    tested = tuple(map(torch.from_numpy, reader.load_images(path, size=size, split="test")[:2]))
    return ImageTask(
        name, trained, tested, classes, info[name].get("repo", "unknown"), info[name].get("licence", "unknown")
    )


def pixels(images: Tensor) -> Tensor:
    """uint8 [N, size, size, 3] -> normalised float32 [N, 3, size, size]."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
