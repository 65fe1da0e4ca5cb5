"""The public face: products with packed factors and samples as torch.library ops, a module for each form of product.

The functions take a bank and a `Routing` and call the op of the same name in the namespace ``dts``, which has a fake
(shapes without data), autograd for x and y (what is packed is constant) and a path for every device (`paths`).  Checks
of dtypes, shapes, devices and the routing are inside the ops.  With plain tensors on a CPU or a GPU, no gradients and
nobody tracing, the functions pass torch's dispatcher by (`library.direct`) and go to the same code; on a GPU a product
that was made before is launched again without it (`gpu.repeat`).
"""

from .. import backends as _backends  # noqa: F401  registers the paths
from .dense import reconstruct
from .library import direct
from .products import delta_linear, linear
from .replay import Replay
from .replay_rows import ReplayRows
from .rows import add_embedding, delta_embedding
from .samples import add_dense_samples, add_sampled_rows, add_samples, start_samples
from .together import Together
from .vectors import add_rows, task_rows, vectors_here

__all__ = [
    "Replay",
    "ReplayRows",
    "Together",
    "add_dense_samples",
    "add_embedding",
    "add_rows",
    "add_sampled_rows",
    "add_samples",
    "delta_embedding",
    "delta_linear",
    "direct",
    "linear",
    "reconstruct",
    "start_samples",
    "task_rows",
    "vectors_here",
]
