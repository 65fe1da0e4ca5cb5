"""Adapters: compress a fine-tune against its base, write, read, truncate, verify, apply."""

from dts.adapter.account import Account, Fate
from dts.adapter.adapter import Adapter
from dts.adapter.apply import write_checkpoint
from dts.adapter.budget import BudgetError
from dts.adapter.compress import compress
from dts.adapter.entries import Entry
from dts.adapter.errors import AdapterError, NoEffect, NothingChanged, Suspicious, Unaccounted
from dts.adapter.verify import Report

__all__ = [
    "Account",
    "Adapter",
    "AdapterError",
    "BudgetError",
    "Entry",
    "Fate",
    "NoEffect",
    "NothingChanged",
    "Report",
    "Suspicious",
    "Unaccounted",
    "compress",
    "write_checkpoint",
]
