"""One tensor to factors: the published algorithm ("paper") and those this project adds ("residual", "sketch")."""

from .compress import compress_tensor
from .errors import Undecodable, Unencodable
from .factors import Factors, Part
from .index import index_from_disk, index_to_disk
from .methods import error_bounds, predicted_error
from .spectrum import singular_values

__all__ = [
    "Factors",
    "Part",
    "Undecodable",
    "Unencodable",
    "compress_tensor",
    "error_bounds",
    "index_from_disk",
    "index_to_disk",
    "predicted_error",
    "singular_values",
]
