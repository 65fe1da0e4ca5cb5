"""One tensor to factors: the published algorithm ("paper") and those this project adds ("residual", "sketch")."""

from .compress import compress_tensor
from .errors import Unencodable
from .factors import Factors, Part, index_from_disk, index_to_disk
from .spectrum import error_bounds, predicted_error, singular_values

__all__ = [
    "Factors",
    "Part",
    "Unencodable",
    "compress_tensor",
    "error_bounds",
    "index_from_disk",
    "index_to_disk",
    "predicted_error",
    "singular_values",
]
