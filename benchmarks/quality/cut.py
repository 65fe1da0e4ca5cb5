"""Adapters cut to a size beside those compressed at it: whole folders of `dts.compress`, KL to the fine-tune.

    python -m benchmarks.quality.cut --task sick_e --large 0.01 --sizes 0.005,0.0025,0.001 --seeds 0,1,2

A line a size: mean KL over the seeds of both, the ratio of the means, and each seed's KL, as two draws of a sample
differ more than cutting and compressing do.
"""

import argparse
from tempfile import TemporaryDirectory

import torch

import dts
from benchmarks.quality import text
from dts import metrics
from dts.demo import evaluate
from dts.demo.finetune import base_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sick_e", help="of text_all, trained or found in the cache")
    parser.add_argument(
        "--large", type=float, default=0.01, help="size of the adapter that is cut, a share of the base"
    )
    parser.add_argument("--sizes", default="0.005,0.0025,0.001", help="sizes it is cut to")
    parser.add_argument("--seeds", default="0", help="of compressing: all of it is done again with each")
    parser.add_argument("--samples", type=int, default=250)
    parser.add_argument("--quick", action="store_true", help="first components, as a load with a budget keeps them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    ((task, _, folder),) = text.finetunes([asked.task], [0], every=True)
    model, tokenizer = evaluate.load_finetuned(folder)
    texts, _ = task.split("test")
    texts = texts[:: max(1, -(-len(texts) // asked.samples))]
    wanted = evaluate.logits(model, tokenizer, texts)

    def kl(adapter: dts.Adapter) -> float:
        evaluate.with_tensors(model, dict(adapter.apply(base_folder())))
        return metrics.kl(evaluate.logits(model, tokenizer, texts), wanted)

    seeds = list(map(int, asked.seeds.split(",")))
    with TemporaryDirectory() as place:
        for seed in seeds:
            dts.compress(base_folder(), folder, f"{place}/{seed}", budget=asked.large, seed=seed)
        for size in map(float, asked.sizes.split(",")):
            ours, theirs = [], []
            for seed in seeds:
                made = dts.compress(base_folder(), folder, budget=size, seed=seed)
                cut = dts.Adapter.load(f"{place}/{seed}").truncate(nbytes=made.nbytes, again=not asked.quick)
                ours.append(kl(cut))
                theirs.append(kl(made))
            shown = ", ".join(f"{a:.5f} beside {b:.5f}" for a, b in zip(ours, theirs))
            print(
                f"{asked.task}, {100 * asked.large:g} % cut to {100 * size:g} %: KL {sum(ours) / len(ours):.5f}, "
                f"compressed {sum(theirs) / len(theirs):.5f}, ratio {sum(ours) / sum(theirs):.2f} ({shown})",
                flush=True,
            )


if __name__ == "__main__":
    main()
