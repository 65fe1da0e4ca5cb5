"""Tokenizer and processor files: which of the fine-tune's differ from the base's."""

import json
from pathlib import Path

from dts.checkpoint.errors import some

TEXT_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.jinja",
    "*processor_config.json",
    "generation_config.json",
)
SUFFIXES = (".json", ".jsonl", ".txt", ".model", ".jinja", ".vocab", ".bpe", ".tiktoken", ".spm")  # no code, no weights
VOCABULARY = ("tokenizer.json", "vocab*", "*.model", "tekken.json")  # one of them is in a tokenizer's folder
RUN_STATE = ("padding", "truncation")  # of tokenizer.json: what the last call used, not what the tokenizer is


def has_tokenizer(folder: Path) -> bool:
    """Of a folder without one transformers makes an empty one, to which every text is unknown."""
    return any(next(folder.glob(name), None) for name in VOCABULARY)


def text_files(folder: Path) -> list[Path]:
    """Those of a folder, by name; folders within it of such a name are none.

    Raises FileNotFoundError for links that lead nowhere and what else cannot be read as a file: what carries them on
    would lose them.
    """
    found = sorted({file for pattern in TEXT_FILES for file in folder.glob(pattern) if not file.is_dir()})
    if lost := [file.name for file in found if not file.is_file()]:
        raise FileNotFoundError(f"{folder} has {some(lost)}, a link to nothing or no file: mend it, or move it away")
    return found


def differing_files(base: Path | None, finetuned: Path | None) -> dict[str, Path]:
    """Name -> path of the fine-tune's files that the base lacks or has with another content."""
    if finetuned is None:
        return {}
    files = [file for file in text_files(finetuned) if file.name.endswith(SUFFIXES)]
    return {f.name: f for f in files if base is None or not _same(base / f.name, f)}


def _same(ours: Path, theirs: Path) -> bool:
    if not ours.is_file():
        return False
    bytes_ = [path.read_bytes() for path in (ours, theirs)]
    if bytes_[0] == bytes_[1] or ours.suffix != ".json":
        return bytes_[0] == bytes_[1]
    try:
        return _content(bytes_[0]) == _content(bytes_[1])
    except (ValueError, RecursionError):  # what is no JSON is another one, and carried as it is
        return False


def _content(text: bytes):
    content = json.loads(text)
    return {k: v for k, v in content.items() if k not in RUN_STATE} if isinstance(content, dict) else content
