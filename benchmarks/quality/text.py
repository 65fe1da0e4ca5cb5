"""Text: MiniLM-L6, fully fine-tuned on real classification tasks."""

from __future__ import annotations

from pathlib import Path

from dts.demo.finetune import Recipe, finetune
from dts.demo.tasks import Task, folder_tasks

# epochs by task: about equal work for each, more where there are many classes
EPOCHS = {
    "trec6": 3, "sst2": 3, "snips": 2, "tweet_emotion": 4, "cr": 4, "stackoverflow20": 2, "mrpc": 4, "cola": 3,
    "sms_spam": 3, "atis": 4, "tweet_irony": 4, "agnews": 2, "banking77": 5, "sick_e": 3, "hwu64": 4, "clinc150": 3,
}  # fmt: skip


def data_folder() -> Path:
    """`../shared/data/text` beside the project."""
    return Path(__file__).resolve().parents[3] / "shared" / "data" / "text"


def cache_folder() -> Path:
    return Path(__file__).resolve().parents[2] / ".cache" / "quality"


def recipe(name: str, seed: int) -> Recipe:
    return Recipe(epochs=EPOCHS[name], seed=seed)


def finetunes(names: list[str], seeds: list[int]) -> dict[tuple[str, int], tuple[Task, Path]]:
    """Fine-tune, or find in the cache, every task of `names` with every seed; a task's seeds differ in everything
    but data: the head's first values, the order of batches and dropout."""
    found = {}
    for seed in seeds:
        for task in folder_tasks(data_folder(), names):
            found[task.name, seed] = task, finetune(task, recipe(task.name, seed), cache=cache_folder())
            print(f"{task.name} seed {seed}: {found[task.name, seed][1].name}", flush=True)
    return found


if __name__ == "__main__":
    finetunes(list(EPOCHS), [0])
