"""What the work with adapters raises or warns of."""


class AdapterError(ValueError):
    """A folder that is not a whole adapter, or not one for this base."""


class NothingChanged(ValueError):
    """A fine-tune whose tensors are all the base's: there is nothing to store."""

    cli_code = 1  # a check that failed, rather than input that cannot be read


class NoEffect(ValueError):
    """What was written is the base, or a part of it is, although it should not be."""


class Unaccounted(ValueError):
    """A tensor of which nobody knows what became."""


class Suspicious(UserWarning):
    """Two models that may not be what was meant: unrelated, or exchanged."""
