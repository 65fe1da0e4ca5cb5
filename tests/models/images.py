"""Families that see."""

from __future__ import annotations

from typing import Any

from transformers.models.auto import modeling_auto as auto

from tests.models import batches
from tests.models.families import families
from tests.models.row import Row

ROWS: list[Row] = []
CLASSES = {"num_labels": 3}


def add(*args: Any, **given: Any) -> None:
    ROWS.extend(families(*args, **given))


section, kinds = "Images", auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
add(section, "vit deit beit convnext convnextv2 resnet", kinds, batches.image, **CLASSES)
add(section, "regnet mobilenet_v1 mobilenet_v2 dinov2", kinds, batches.image, **CLASSES)
add(section, "dinov2_with_registers focalnet", kinds, batches.image, **CLASSES)
add(section, "pvt_v2 hiera ijepa vit_msn", kinds, batches.image, **CLASSES)
add(section, "swiftformer data2vec-vision siglip clip", kinds, batches.image, **CLASSES)
add(section, "swin swinv2 donut-swin", kinds, batches.image, **CLASSES, num_heads=[2, 4], depths=[1, 1], window_size=2)
add(section, "mobilevit", kinds, batches.image, **CLASSES, hidden_sizes=[32, 32, 32], image_size=64)
add(section, "mobilevitv2", kinds, batches.image, **CLASSES, image_size=64, width_multiplier=0.25)
add(
    section,
    "videomae vivit timesformer",
    auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    batches.video,
    **CLASSES,
    num_frames=4,
)

section = "Segmentation, detection and depth"
kinds = auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
add(section, "segformer mobilenet_v2", kinds, batches.image, what="segmentation")
kinds = auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES
add(section, "eomt", kinds, batches.image, what="segmentation")
kinds = auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
add(section, "yolos", kinds, batches.image, what="detection")
