"""What the codec refuses."""


class Unencodable(ValueError):
    """A tensor that has no factors: NaN or infinite elements, a wrong dtype or number of dimensions."""


class Undecodable(ValueError):
    """Stored tensors that are no part of a matrix: missing, of wrong sizes, or not what their row says."""
