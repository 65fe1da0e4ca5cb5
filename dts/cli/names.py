"""What fine-tunes are called that were given by their places alone."""

import os
from pathlib import Path

MODEL_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def named(sources: list[str]) -> dict[str, str]:
    """{task: source}, each named by its folder, or its file without the ending, with the folder around it where several
    have one name."""
    from dts.checkpoint.files import split_state
    from dts.checkpoint.hub import split_revision

    # "." has no name; a link has its own
    paths = {source: Path(os.path.abspath(split_state(split_revision(source)[0])[0])) for source in sources}
    names = {source: path.stem if path.suffix in MODEL_FILES else path.name for source, path in paths.items()}
    twice = [source for source, name in names.items() if list(names.values()).count(name) > 1]
    names |= {source: f"{paths[source].parent.name}-{names[source]}" for source in twice}  # anime/unet, paint/unet
    if len(set(names.values())) < len(sources):
        raise ValueError(f"fine-tunes must have names of their own, not {', '.join(names.values())}: rename a folder")
    return {name: source for source, name in names.items()}
