"""The verbs that write what --out names, with words for each."""

from pathlib import Path

WRITERS = ("compress", "apply", "truncate", "merge", "mix")


def writing(models: Path) -> dict[str, tuple]:
    """Of the fixture ``models``, and an adapter "a" of its fine-tune "one"."""
    return {
        "compress": (models / "base", models / "one", "-s", "40%"),
        "apply": (models / "base", "a"),
        "truncate": ("a", "-s", "30%"),
        "merge": (models / "one", models / "two"),
        "mix": ("a", "--weight", "one=1"),
    }
