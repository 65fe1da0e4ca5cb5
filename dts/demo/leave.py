"""What the demo leaves for those who go on: its base, its fine-tunes and their test sets, under short names."""

import json
import os
import shutil
from pathlib import Path

from dts.demo.tasks import Task
from dts.files import real


def leave(folder: Path, base: Path, tasks: dict[str, tuple[Path, Task]]) -> None:
    """``folder/base``, ``folder/<task>`` and ``folder/<task>.jsonl``; the models are links to where they are.

    tasks: task -> (folder of its fine-tune, the task).
    """
    folder.mkdir(parents=True, exist_ok=True)
    link(folder / "base", base)
    for name, (finetuned, task) in tasks.items():
        link(folder / name, finetuned)
        rows = [
            ({"text": text} if isinstance(text, str) else {"sentence1": text[0], "sentence2": text[1]})
            | {"label": task.class_names[label]}
            for text, label in zip(*task.split("test"))
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")


def link(place: Path, target: Path) -> None:
    """A link to a folder; a copy of it where the system has no links for everybody."""
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        return  # somebody's own, or a copy
    try:
        os.symlink(real(target), place, target_is_directory=True)
    except OSError:
        shutil.copytree(target, place)
