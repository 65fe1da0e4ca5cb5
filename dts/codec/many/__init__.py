"""Residual components of many matrices of one shape at once, for devices that are fast where much is asked at once.

The same method as `dts.codec.alternations`, which is one matrix at a time on a CPU and what this is compared with.
Other than there, nothing waits for the device but where the host must know a number: for what singular values there
are, and for the result.  All of it runs on any device, so that it can be tested without a GPU.

    basis         singular vectors and values of all, by products and Cholesky factors
    sweeps        a pass over one side of all; on a GPU a kernel takes a chunk of components at a time
    components    start, alternations, packed factors
    samples       what a sketch keeps of the rest
    host          what crosses over
"""

from .basis import leading_values
from .components import Encoded, encode, encoded
from .host import exact_products, suits, to_host
from .samples import encode as encode_samples

__all__ = [
    "Encoded",
    "encode",
    "encode_samples",
    "encoded",
    "exact_products",
    "leading_values",
    "suits",
    "to_host",
]
