"""Adapters in the formats of other libraries, and theirs as adapters; what that loses is always a figure."""

from dts.exports.lora import export_lora
from dts.exports.report import Export, Exported, NotExact

__all__ = ["Export", "Exported", "NotExact", "export_lora"]
