"""Who computes: a module a backend, each with its paths of the ops (`paths.register`) and what it takes
(`dispatch.chooser`).  They are asked in this order; the reference, which has every op, takes what is left.
"""

from . import cpu, cuda, reference

__all__ = ["cpu", "cuda", "reference"]
