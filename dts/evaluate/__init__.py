"""Base, fine-tune and adapters side by side on inputs: accuracy or perplexity, agreement with the fine-tune, KL."""

from dts.evaluate.data import Examples, read
from dts.evaluate.run import evaluate

__all__ = ["Examples", "evaluate", "read"]
