"""Adapters: compress a fine-tune against its base, write, read, truncate, verify, apply."""

from dts.adapter.adapter import Adapter
from dts.adapter.entries import Entry

__all__ = ["Adapter", "Entry"]
