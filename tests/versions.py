"""What tests expect otherwise of the least version of a library than of those that came after."""

from importlib.metadata import version

TRANSFORMERS_5_0 = version("transformers").startswith("5.0.")
