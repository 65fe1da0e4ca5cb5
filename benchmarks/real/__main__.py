"""Language models of real size: the ten scores that ImPart published, of adapters of this project.

    python -m benchmarks.real                         all ten scores, at 1/64 of fp32 as published, and at .5 %
    python -m benchmarks.real --scores wizardmath-gsm8k,wizardcoder-mbpp
    python -m benchmarks.real --list                  ids of models and data, and what was published
    python -m benchmarks.real --pair BASE FINETUNE --benchmark gsm8k      any two models of transformers
    python -m benchmarks.real clip                    CLIP ViT-B/32 and ViT-L/14 on the eight vision tasks

Needs a network, the licences of the gated models, datasets, and for the 13B models a GPU of 40 GB; it is asked first
whether all of it is there.  A run that was interrupted goes on where it was.  Programs that models write run in a
process of their own, with little time and memory and without a network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.quality.command import CACHE, hush, list_of
from benchmarks.real.access import place_of, problems, refuse
from benchmarks.real.generate import TOKENS
from benchmarks.real.measure import Setting, measured
from benchmarks.real.prompts import STYLES
from benchmarks.real.scores import DATA, PUBLISHED_SHARE, SCORES, Model, Score
from benchmarks.real.table import table
from dts.demo.tasks import MissingData

CLIP = ("clip-b32-8", "clip-l14-8")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 2 wrong options, or data, licences or packages missing."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["clip"]:
        return _clip(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.scores if name not in SCORES]:
        parser.error(f"no score {', '.join(unknown)}; there are {', '.join(SCORES)}")
    if options.pair and not options.benchmark:
        parser.error(f"--pair needs a --benchmark: {', '.join(DATA)}")
    if options.list:
        print(_listed())
        return 0
    hush()
    scores = _scores(options)
    names = {place_of(name, options.mirror) for s in scores for name in (s.model.base, s.model.finetuned)}
    data = {place_of(one.path, options.mirror) for s in scores for one in DATA[s.benchmark]}
    try:
        refuse(problems(sorted(names), sorted(data), [s.benchmark for s in scores], options.isolated, options.device))
        setting = Setting(
            out=options.out,
            sizes=options.sizes,
            mirror=options.mirror,
            limit=options.limit,
            batch=options.batch,
            device=options.device,
            dtype=DTYPES[options.dtype],
            method=options.method,
            tokens=options.tokens,
            isolated=options.isolated,
        )
        rows = [row for score in scores for row in measured(score, setting, lambda line: print(line, flush=True))]
    except MissingData as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    if options.pair:
        return 0
    print(table(rows))
    return 0


def _scores(options: argparse.Namespace) -> list[Score]:
    if not options.pair:
        return [SCORES[name] for name in options.scores or SCORES]
    base, finetuned = options.pair
    model = Model(Path(finetuned).name, finetuned, base, options.prompt)
    metric = next(score.metric for score in SCORES.values() if score.benchmark == options.benchmark)
    return [Score(f"{model.name}-{options.benchmark}", model, options.benchmark, metric)]


def _clip(arguments: list[str]) -> int:
    """The suites of `benchmarks.quality.published`, one after another."""
    from benchmarks.quality.published.__main__ import main as published

    for suite in CLIP:
        if code := published([suite, *arguments]):
            return code
    return 0


def _listed() -> str:
    lines = []
    for score in SCORES.values():
        data = ", ".join(dict.fromkeys(data.path for data in DATA[score.benchmark]))
        lines.append(f"{score.name:22} {score.model.finetuned} on {score.model.base}; {data}; {score.metric}")
    return "\n".join([*lines, table([])])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--scores", type=list_of(str), default=[], help="names, by commas; default all")
    parser.add_argument("--list", action="store_true", help="what is measured and what was published, and nothing else")
    parser.add_argument("--pair", nargs=2, metavar=("BASE", "FINETUNE"), help="two models of your own instead")
    parser.add_argument("--benchmark", choices=list(TOKENS), help="of --pair")
    parser.add_argument("--prompt", choices=[*STYLES, "chat"], default="plain", help="of --pair")
    parser.add_argument("--sizes", type=list_of(float), default=[PUBLISHED_SHARE, 0.005], help="shares of fp32")
    parser.add_argument("--method", default="auto", help="of dts compress")
    parser.add_argument("--limit", type=int, help="rows of a benchmark, at most: to try it out")
    parser.add_argument("--tokens", type=int, help="of an answer, at most; default as published")
    parser.add_argument("--batch", type=int, default=16, help="questions at once")
    parser.add_argument("--device", default=device)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float16")
    parser.add_argument("--mirror", type=Path, help="a folder of copies, owner/name each")
    parser.add_argument("--isolated", action="store_true", help="this machine has no network to be cut off")
    parser.add_argument("--out", type=Path, default=CACHE / "real", help="folder of adapters, answers and figures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
