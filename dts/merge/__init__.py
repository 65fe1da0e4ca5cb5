"""Base merged models. The module is its main function: ``dts.merge(base, finetunes, method="ties")``.

``dts.merge.table()`` lists the methods and their options.
"""

import sys
import types

from .difference import compress_difference
from .merge import merge
from .registry import METHODS, Method, Option, table

__all__ = ["METHODS", "Method", "Option", "compress_difference", "merge", "table"]


class _Callable(types.ModuleType):
    def __call__(self, *args, **kwargs):
        return merge(*args, **kwargs)


_Callable.__call__.__doc__ = merge.__doc__
sys.modules[__name__].__class__ = _Callable
