"""The table: every row."""

from __future__ import annotations

from tests.models import images, text

ROWS = text.ROWS + images.ROWS
FAST = ("bert", "llama", "mamba", "bart", "vit", "mixtral")  # those that the whole test suite has, too
