"""Models of a hub by their id, at one revision, read from its cache or fetched into it."""

import re
from pathlib import Path

from dts.checkpoint.errors import CheckpointError
from dts.files import expanded

ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
TEXT = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")
NEVER = ("consolidated*", "onnx/*", "openvino/*", "original/*")  # the same weights in other formats
OPTIONS = ("cache_dir", "token", "local_files_only", "force_download", "proxies")  # of the hub's own call


def split_revision(source: str) -> tuple[str, str | None]:
    """``id@revision`` -> its two parts; anything else, a path with @ in it among them, stays as it is."""
    name, at, revision = source.rpartition("@")
    if at and revision and ID.fullmatch(split_subfolder(name)[0]) and not expanded(source).exists():
        return name, revision
    return source, None


def no_revision(source, revision: str | None) -> None:
    """Raises CheckpointError for a revision of what lies on this machine; "main" says nothing."""
    if revision not in (None, "main"):
        raise CheckpointError(f"a revision ({revision}) is of a hub id, and {source} is none: leave it out")


def split_subfolder(source: str, subfolder: str = "") -> tuple[str, str]:
    """``org/name/unet`` -> its id and the folder in it; a path whose start is here is a wrong path, and no id."""
    parts = source.split("/")
    if len(parts) < 3 or any(part in ("", ".", "..") for part in parts) or Path(parts[0]).exists():
        return source, subfolder
    return "/".join(parts[:2]), "/".join([*parts[2:], *filter(None, [subfolder])])


def snapshot(name: str, revision: str | None, options: dict, subfolder: str = "") -> tuple[Path, str]:
    """(folder of an id's files, commit); raises CheckpointError with the hub's own reason."""
    place = f"{name}/{subfolder}" if subfolder else name
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"there is no file or folder {place}; reading it from a hub needs `pip install huggingface_hub`"
        ) from error
    options = {key: value for key, value in options.items() if key in OPTIONS and value is not None}
    options = {"revision": revision, "ignore_patterns": list(NEVER)} | options
    under = f"{subfolder.strip('/')}/" if subfolder else ""
    try:
        root = Path(snapshot_download(name, allow_patterns=[f"{under}*.safetensors", *TEXT], **options))
        folder = root / subfolder
        if not any(folder.glob("*.safetensors")):
            root = Path(snapshot_download(name, allow_patterns=[f"{under}*pytorch_model*.bin", *TEXT], **options))
        elif (folder / "modules.json").is_file():  # its modules may be pickles where the transformer is not
            root = Path(snapshot_download(name, allow_patterns=[f"{under}*_*/pytorch_model.bin", *TEXT], **options))
    except Exception as error:  # offline, no such id or revision, no access: the hub's own message says which
        at = f" at {revision}" if revision else ""
        raise CheckpointError(
            f"there is no file or folder {place}, and the hub did not give it{at}: {error}"
        ) from error
    return root / subfolder, root.name
