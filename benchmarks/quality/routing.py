"""No task id: which task an input is of, from unlabelled examples of each task; no fine-tune and no adapter is needed.

    python -m benchmarks.quality.routing                 MiniLM-L6 on the text tasks of ../shared/data/text
    python -m benchmarks.quality.routing --images        six blocks of DINOv2 on the tasks of ../shared/data/images

What adapters know of their inputs (`dts route`) alone decides, without the energies of their components, so these are
figures of adapters of any kind.  The rule was chosen on `CHOSEN_ON`; of `TASKS` nothing was looked at.  Test inputs are
up to 150 a task, examples are drawn from the training sets; mean over tasks, and its deviation over draws.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.quality import dinov2, image_tasks, images
from benchmarks.quality.command import CACHE, hush, list_of, make_place
from benchmarks.quality.merging.routing import NEAR_DUPLICATES, load_encoder, timed
from benchmarks.quality.merging.tested import flat, spread
from benchmarks.quality.text import data_folder
from dts.adapter.route import InputStatistics
from dts.demo.finetune import tokenize
from dts.demo.tasks import MissingData, folder_tasks
from dts.unseen.likelihood import discriminant
from dts.unseen.passes import layer_inputs
from dts.unseen.places import modules_named
from dts.unseen.statistics import first_layer, summary

CHOSEN_ON = ["agnews", "banking77", "sms_spam", "mrpc", "cola", "tweet_irony", "sick_e"]
TASKS = ["trec6", "sst2", "snips", "tweet_emotion", "cr", "stackoverflow20", "atis", "hwu64"]
IMAGES = [name for name in images.TRAINING if name not in images.UNSEEN]
EXAMPLES = (16, 64, 256, 512)
POOL, TEST, BATCH = 512, 150, 64

Batches = Iterable[dict[str, Tensor]]


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 2 wrong options, or data or packages missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.routing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--examples", type=list_of(int), default=list(EXAMPLES), help="of each task, by commas")
    parser.add_argument("--draws", type=int, default=3, help="of the examples")
    parser.add_argument("--out", type=Path, help="file of the rows")
    options = parser.parse_args(arguments)
    make_place(parser, options.out)
    hush()
    try:
        model, tasks = image_batches() if options.images else text_batches()
    except MissingData as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    rows = measured(model, tasks, groups(options.images), options.examples, options.draws)
    for row in rows:
        print(shown(row), flush=True)
    if options.out:
        options.out.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    return 0


def groups(of_images: bool) -> dict[str, list[str]]:
    """What is told apart: a name for it, and its tasks."""
    if of_images:
        return {f"images, {len(IMAGES)} tasks": IMAGES}
    distinct = [name for name in TASKS if name not in NEAR_DUPLICATES]
    return {
        f"chosen on, {len(CHOSEN_ON)} tasks": CHOSEN_ON,
        f"reported, {len(distinct)} tasks": distinct,
        f"reported, {len(TASKS)} tasks, near-duplicates among them": TASKS,
    }


def text_batches() -> tuple[torch.nn.Module, dict[str, dict[str, Batches]]]:
    model, tokenizer = load_encoder()

    def batches(texts: list) -> list[dict[str, Tensor]]:
        texts = sorted(map(flat, texts), key=len)
        return [dict(tokenize(tokenizer, texts[i : i + BATCH])) for i in range(0, len(texts), BATCH)]

    tasks = folder_tasks(data_folder(), CHOSEN_ON + TASKS)
    splits = (("train", POOL), ("test", TEST))
    return model, {t.name: {s: batches(spread(t.split(s)[0], count)) for s, count in splits} for t in tasks}


def image_batches() -> tuple[torch.nn.Module, dict[str, dict[str, Batches]]]:
    from transformers import Dinov2Model

    def batches(pictures: Tensor) -> list[dict[str, Tensor]]:
        return [{"pixel_values": image_tasks.pixels(some)} for some in pictures.split(BATCH)]

    found = {}
    for name in IMAGES:
        task = image_tasks.load(name, dinov2.SIZE, POOL)
        test = task.test[0][:: max(1, -(-len(task.test[0]) // TEST))]
        found[name] = {"train": batches(task.train[0]), "test": batches(test)}
    return Dinov2Model.from_pretrained(dinov2.base_folder(CACHE)).eval(), found


def measured(
    model: torch.nn.Module, tasks: dict, among: dict[str, list[str]], examples: list[int], draws: int
) -> list[dict]:
    """A row for each group of tasks and number of examples."""
    some = next(iter(tasks.values()))["test"][0]
    layer = first_layer(model, some)
    module = modules_named(model, [layer])[layer]

    def looked_at(batch: dict[str, Tensor]) -> Tensor:
        return summary(layer_inputs(model, {"": module}, batch)[""], batch.get("attention_mask"))

    with torch.inference_mode():
        seen = {
            name: {split: torch.cat(list(map(looked_at, batches))) for split, batches in splits.items()}
            for name, splits in tasks.items()
        }
        cost = timed(lambda: looked_at(some)) / timed(lambda: model(**some))
    rows = []
    for group, names in among.items():
        for count in examples:
            shares: list[dict[str, float]] = []
            for draw in range(draws):
                order = torch.Generator().manual_seed(draw)
                known = [
                    InputStatistics.of(
                        layer, seen[n]["train"][torch.randperm(len(seen[n]["train"]), generator=order)[:count]]
                    )
                    for n in names
                ]
                weight, bias, origin = discriminant(known)
                best = {n: ((seen[n]["test"] - origin) @ weight.T + bias).argmax(1) for n in names}
                shares.append({n: (best[n] == i).double().mean().item() for i, n in enumerate(names)})
            means = [statistics.fmean(share.values()) for share in shares]
            rows.append(
                {
                    "among": group,
                    "examples": count,
                    "right": statistics.fmean(means),
                    "deviation": statistics.stdev(means) if draws > 1 else 0.0,
                    "tasks": {n: statistics.fmean(share[n] for share in shares) for n in names},
                    "bytes": known[0].nbytes,
                    "share_of_a_pass": cost,
                }
            )
    return rows


def shown(row: dict) -> str:
    worst = min(row["tasks"], key=row["tasks"].__getitem__)
    return (
        f"{row['among']:58} {row['examples']:4} examples  {100 * row['right']:5.1f} ± {100 * row['deviation']:.1f} %  "
        f"worst {worst} {100 * row['tasks'][worst]:.1f}  {row['bytes']:,} bytes  "
        f"{100 * row['share_of_a_pass']:.1f} % of a pass"
    )


if __name__ == "__main__":
    sys.exit(main())
