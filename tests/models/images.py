"""Families that see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers.models.auto import modeling_auto as auto

from tests.models import batches
from tests.models.families import families
from tests.models.row import Row

ROWS: list[Row] = []
CLASSES = {"num_labels": 3}


def without_masks(row: Row) -> Row:
    """EoMT as its training ends: no mask is left that lets attention see what is above zero, a threshold at which two
    orders of the same float32 sums part."""

    def make() -> Any:
        model = row.make()
        model.attn_mask_probs.zero_()
        return model

    return replace(row, make=make)


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
RESNET = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 32, 32],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "num_queries": 6,
}
SWIN = {
    "model_type": "swin",
    "image_size": 32,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 2, 2],
    "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
kinds = auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
add(section, "segformer mobilenet_v2", kinds, batches.image, what="segmentation")
add(section, "upernet", kinds, batches.image, what="segmentation", backbone_config=SWIN)
kinds = auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES
ROWS.extend(map(without_masks, families(section, "eomt", kinds, batches.image, what="segmentation")))
add(section, "maskformer", kinds, batches.image, what="segmentation", backbone_config=SWIN)
add(section, "mask2former", kinds, batches.image, what="segmentation", backbone_config=SWIN, num_queries=6)
kinds = auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
add(section, "yolos", kinds, batches.image, what="detection")
add(section, "detr conditional_detr table-transformer", kinds, batches.image, what="detection", **RESNET)
add(section, "dab-detr", kinds, batches.image, what="detection", **RESNET)
add(
    section,
    "swin2sr",
    "Swin2SRForImageSuperResolution",
    batches.image,
    what="super-resolution",
    depths=[1, 1],
    num_heads=[2, 2],
    window_size=4,
)
add(section, "vit_mae", auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES, batches.masked_image, outputs=("logits",))
