"""Families of images and text together."""

from __future__ import annotations

from typing import Any

from transformers.models.auto import modeling_auto as auto

from tests.models import batches
from tests.models.families import families
from tests.models.row import Row

ROWS: list[Row] = []


def add(*args: Any, **given: Any) -> None:
    ROWS.extend(families(*args, **given))


section = "Images and text"
BOTH = ("text_embeds", "image_embeds")  # logits are of every image with every text
for family, kind in (
    ("clip", "CLIPModel"),
    ("siglip", "SiglipModel"),
    ("chinese_clip", "ChineseCLIPModel"),
    ("altclip", "AltCLIPModel"),
    ("metaclip_2", "MetaClip2Model"),
):
    add(section, family, kind, batches.text_and_image, outputs=BOTH, what="both towers")
add(section, "blip", "BlipForConditionalGeneration", batches.text_and_image, batches.caption, outputs=("logits",))
add(section, "git", "GitForCausalLM", batches.text_and_image, batches.caption, outputs=("logits",))
add(section, "vilt", "ViltForQuestionAnswering", batches.text_and_image, num_labels=3)
add(section, "clipseg", "CLIPSegForImageSegmentation", batches.text_and_image, outputs=("logits",))
add(
    section,
    "owlvit owlv2",
    auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES,
    batches.text_and_image,
    outputs=("logits", "pred_boxes"),
)
kinds = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
SEES = batches.seen, batches.seen
add(section, "llava", kinds, *SEES, outputs=("logits",), image_token_index=50)
add(section, "paligemma", kinds, *SEES, outputs=("logits",))
