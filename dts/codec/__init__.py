"""One tensor to factors: the published algorithm ("paper") and the one this project adds ("residual")."""

from .errors import Unencodable
from .factors import Factors, Part, index_from_disk, index_to_disk

__all__ = ["Factors", "Part", "Unencodable", "index_from_disk", "index_to_disk"]
