"""What the codec refuses."""


class Unencodable(ValueError):
    """A tensor that has no factors: NaN or infinite elements, a wrong dtype or number of dimensions."""
