"""Tokenizer and processor files: which of the fine-tune's differ from the base's."""

import json
from pathlib import Path

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


def differing_files(base: Path | None, finetuned: Path | None) -> dict[str, Path]:
    """Name -> path of the fine-tune's files that the base lacks or has with another content."""
    if finetuned is None:
        return {}
    files = sorted(
        {
            file
            for pattern in TEXT_FILES
            for file in finetuned.glob(pattern)
            if file.is_file() and file.name.endswith(SUFFIXES)
        }
    )
    return {f.name: f for f in files if base is None or not _same(base / f.name, f)}


def _same(ours: Path, theirs: Path) -> bool:
    if not ours.is_file():
        return False
    if ours.suffix == ".json":
        return _content(ours) == _content(theirs)
    return ours.read_bytes() == theirs.read_bytes()


def _content(path: Path):
    content = json.loads(path.read_text("utf-8"))
    return {k: v for k, v in content.items() if k not in RUN_STATE} if isinstance(content, dict) else content
