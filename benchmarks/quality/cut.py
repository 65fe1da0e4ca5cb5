"""Adapters cut to a size beside those compressed at it: whole folders of `dts.compress`, KL to the fine-tune.

python -m benchmarks.quality.cut --task sick_e --large 0.01 --sizes 0.005,0.0025,0.001
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

    with TemporaryDirectory() as place:
        dts.compress(base_folder(), folder, f"{place}/large", budget=asked.large)
        for size in map(float, asked.sizes.split(",")):
            made = dts.compress(base_folder(), folder, budget=size)
            cut = dts.Adapter.load(f"{place}/large").truncate(nbytes=made.nbytes, again=not asked.quick)
            ours, theirs = kl(cut), kl(made)
            print(
                f"{asked.task}, {100 * asked.large:g} % cut to {100 * size:g} %, {cut.nbytes:,} bytes: KL {ours:.5f}; "
                f"compressed, {made.nbytes:,} bytes: {theirs:.5f}; ratio {ours / theirs:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
