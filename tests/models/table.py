"""The table: every row."""

from __future__ import annotations

from tests.models import images, joint, others, sound, text

ROWS = text.ROWS + images.ROWS + joint.ROWS + sound.ROWS + others.ROWS
FAST = ("bert", "llama", "mamba", "bart", "vit", "mixtral")  # those that the whole test suite has, too
