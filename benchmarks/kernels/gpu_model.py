"""A whole language model with eight tasks beside its base and PEFT's LoRA on a CUDA device, in one run.

    python -m benchmarks.kernels.gpu_model [--seconds 170] [--out benchmarks/results]

A Llama of 1.1 B parameters with random weights; decoding a token a row with 1, 8 and 32 rows of one task and of all
tasks in turn, prefill of 512 and 2,048 tokens, eagerly and in CUDA graphs, for components and sketches of .5 and 1 % of
the base in float32; decoding in graphs of `DTSModel.capture`, with and without one launch for layers that share an
input.  Then the time and memory of loading a task, and of switching.  Rows of a mixed batch are first
compared with the same rows alone.  LoRA has the bytes of the components at .5 % (two bytes an element), or their rank;
"grouped" is two batched products a layer in place of PEFT's loop, "dense models" the base once a task.  Writes
model.json and model.png to OUT/<gpu>/ after every step.  Ratios are to the base in the same mode with as many rows.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from dts.adapter import Entry
from dts.codec import Factors
from dts.codec.sketch import split
from dts.files import write_text
from dts.nn import DTSModel
from dts.nn.graphs import Record
from dts_kernels import Samples, pack
from dts_kernels.gpu.config import slug
from dts_kernels.gpu.tune import random_factors, rotated_milliseconds
from dts_kernels.samples import groups_of

TASKS = 8
KINDS = [("components", 0.005), ("components", 0.01), ("sketch", 0.005), ("sketch", 0.01)]
TOLERANCE = 3e-2  # bf16 logits of a whole model, a row among others and alone
LORA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Size:
    """Of a Llama, and of what is fed to it."""

    hidden: int = 2048
    layers: int = 16
    inner: int = 8192
    heads: int = 32
    shared: int = 8  # heads of keys and values
    words: int = 32000
    batches: tuple[int, ...] = (1, 8, 32)
    prompts: tuple[int, ...] = (512, 2048)


def llama(size: Size, device: str) -> nn.Module:
    """bfloat16, random weights, made on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.shared,
        vocab_size=size.words,
        max_position_embeddings=4096,
    )
    with torch.device(device):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def matrices(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Names and shapes of the linear layers that tasks change."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {
        f"{name}.weight": (module.out_features, module.in_features)
        for name, module in found.items()
        if name != "lm_head"
    }


def rank_of(model: nn.Module, budget: float, bits: float = 2) -> int:
    """The one rank of all matrices at which factors of ``bits`` an element take that share of the model in float32."""
    bytes_a_rank = sum((m + n) * bits / 8 + 4 for m, n in matrices(model).values())
    return max(1, int(budget * 4 * sum(p.numel() for p in model.parameters()) / bytes_a_rank))


def task(model: nn.Module, kind: str, budget: float, seed: int, device: str) -> dict[str, Entry]:
    """Random entries of that size, small enough to leave the model's outputs finite."""
    entries, rank = {}, rank_of(model, budget)
    for i, (name, (m, n)) in enumerate(matrices(model).items()):
        first, stride = split(rank, (m, n)) if kind == "sketch" else (rank, None)
        stored: tuple = (random_factors(m, n, min(first, m, n), seed * 1000 + i, device),)
        if stride is not None:
            codes = torch.randint(4, (m, groups_of(n, stride)), dtype=torch.uint8, device=device)
            stored += (Samples(pack(codes), 1e-5 * stride, stride, seed * 1000 + i, (m, n)),)
        factors = Factors(stored, (m, n), None, None, 1.0, 0.1)
        entries[name] = Entry(name, name, (m, n), "factors", torch.bfloat16, factors)
    return entries


def eager_milliseconds(run: Callable[[], object], repeats: int = 10) -> list[float]:
    """Times on the host's clock, the device idle before and after each."""
    times = []
    for i in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if i >= 2:
            times.append(1e3 * (time.perf_counter() - start))
    return times


def replay_milliseconds(step: Callable[[], object], repeats: int = 20) -> list[float]:
    """Times on the device of a graph that is replayed, each behind one that is not timed."""
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        step()
        start.record()
        step()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return times


@dataclass
class Clock:
    """How the modes are timed, and what records graphs of `DTSModel.capture`; tests put others in their place."""

    eager: Callable[[Callable], list[float]] = eager_milliseconds
    captured: Callable[[list], list[float]] = rotated_milliseconds
    replayed: Callable[[Callable], list[float]] = replay_milliseconds
    record: Record | None = None
    memory: Callable[[], int] = field(default=lambda: torch.cuda.memory_allocated())

    def both(self, run: Callable[[], object]) -> Iterator[tuple[str, float | None, str | None]]:
        """(mode, median milliseconds or None, why there are none)."""
        for mode, time_it in (("eager", self.eager), ("captured", lambda run: self.captured([run]))):
            try:
                yield mode, statistics.median(time_it(run)), None
            except RuntimeError as error:  # what cannot be captured, or does not fit
                yield mode, None, str(error)[:300]


class Report:
    """Rows as they are found."""

    def __init__(self, folder: Path | None, gpu: str, deadline: float):
        self.folder, self.gpu, self.deadline = folder, gpu, deadline
        self.rows: list[dict] = []
        self.left_out: list[str] = []
        self.failed: list[str] = []

    def add(self, **row) -> None:
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        self.write()

    def time(self, what: str, run: Callable[[], object], clock: Clock, **about) -> None:
        """A row a mode, with its ratio to the base's."""
        for mode, found, why in clock.both(run):
            base = next(
                (r["ms"] for r in self.rows if r["what"] == "base" and r["mode"] == mode and same(r, about)), None
            )
            row = {"what": what, "mode": mode, **about, "ms": found}
            self.add(**row, **({"failed": why} if why else {}), ratio=found / base if found and base else None)

    def attempt(self, what: str, measure: Callable[[], None]) -> None:
        """What is wrong, or does not fit, costs no other measurement."""
        try:
            measure()
        except (AssertionError, RuntimeError, ValueError) as failure:
            self.failed.append(f"{what}: {failure}"[:400])
            print(self.failed[-1], file=sys.stderr)
        self.write()

    def late(self, what: str) -> bool:
        """Is there no time for this any more?"""
        if time.monotonic() > self.deadline:
            self.left_out.append(what)
        return time.monotonic() > self.deadline

    def write(self) -> None:
        if self.folder is not None:
            found = {"gpu": self.gpu, "torch": torch.__version__, "not_measured": [*self.failed, *self.left_out]}
            found["rows"] = self.rows
            write_text(self.folder / "model.json", json.dumps(found, indent=1) + "\n")


def same(row: dict, about: dict) -> bool:
    """The same rows of the same number of tokens?"""
    return (row["batch"], row["tokens"]) == (about["batch"], about["tokens"])


def inputs(size: Size, device: str) -> list[torch.Tensor]:
    """A token a row of every batch, and the prompts."""
    shapes = [(batch, 1) for batch in size.batches] + [(1, tokens) for tokens in size.prompts]
    return [torch.randint(0, size.words, shape, device=device) for shape in shapes]


def of_base(model: nn.Module, given: list[torch.Tensor], report: Report, clock: Clock) -> None:
    for ids in given:
        run = lambda ids=ids: model(input_ids=ids, use_cache=False).logits  # noqa: E731
        report.time("base", run, clock, batch=ids.shape[0], tokens=ids.shape[1])


def of_kind(model: nn.Module, kind: str, budget: float, given, report: Report, clock: Clock, device: str) -> None:
    """Loads tasks of one kind and size, checks them, times them, and gives the model back as it was."""
    ours, before = DTSModel(model), clock.memory()
    try:
        _of_tasks(ours, kind, budget, given, report, clock, device, before)
    finally:
        ours.merge_and_unload(None)  # the base as it was


def _of_tasks(
    ours: DTSModel, kind: str, budget: float, given, report: Report, clock: Clock, device: str, before: int
) -> None:
    about, model = {"kind": kind, "budget": budget}, ours.model
    made = [task(model, kind, budget, seed, device) for seed in range(TASKS)]
    made_memory, start = clock.memory(), time.perf_counter()
    for i, entries in enumerate(made):
        ours.load_task(f"t{i}", entries)
    seconds = (time.perf_counter() - start) / TASKS
    packed = sum(entry.factors.nbytes for entry in made[0].values())
    held = (clock.memory() - made_memory) / TASKS
    report.add(what="load", **about, seconds=seconds, packed_bytes=packed, held_bytes=held, before=before)
    del made
    ours.set_task("t0")
    switch = clock.eager(lambda: ours.set_task("t1"))
    report.add(what="switch", **about, ms=statistics.median(switch))
    for ids in given:
        names = [f"t{i % TASKS}" for i in range(ids.shape[0])]
        sizes = {"batch": ids.shape[0], "tokens": ids.shape[1]}
        run = lambda ids=ids: ours(input_ids=ids, use_cache=False).logits  # noqa: E731
        ours.set_task("t0")
        report.time("one task", run, clock, **about, **sizes)
        if ids.shape[0] > 1:
            ours.set_tasks(names)
            mixed = run()
            for row in range(min(len(names), 4)):
                alone = ours(input_ids=ids[row : row + 1], use_cache=False, tasks=names[row]).logits
                error = ((mixed[row : row + 1].float() - alone.float()).norm() / alone.float().norm()).item()
                assert error <= TOLERANCE, f"row {row} of a mixed batch differs from itself alone by {error:.2e}"
            report.time("a task a row", run, clock, **about, **sizes)
        if ids.shape[1] == 1:
            of_shared(ours, ids, report, clock, **about, **sizes)


def of_shared(ours: DTSModel, ids: torch.Tensor, report: Report, clock: Clock, **about) -> None:
    """A step in graphs of `DTSModel.capture`, of the tasks that are set: as it is, and with share_inputs."""
    with torch.inference_mode(False), torch.no_grad():  # which counts what is written
        given = {"input_ids": ids.clone(), "use_cache": False}
        for what, share in (("captured step", False), ("shared inputs", True)):
            row: dict = {"what": what, "mode": "captured", **about, "ms": None, "ratio": None}
            try:
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    step = ours.capture(clock.record, share_inputs=share, **given)
                row["ms"] = statistics.median(clock.replayed(lambda step=step: step(**given)))
                row |= {"said": [str(one.message)[:300] for one in said]} if said else {}
            except RuntimeError as error:
                row["failed"] = str(error)[:300]
            base = next(
                (r["ms"] for r in report.rows if r["what"] == "base" and r["mode"] == "captured" and same(r, about)), 0
            )
            report.add(**row | ({"ratio": row["ms"] / base} if row["ms"] and base else {}))


def of_dense(model: nn.Module, given: list[torch.Tensor], report: Report, clock: Clock) -> None:
    """A model a task, each with its rows: the base in the place of all, whose weights no cache keeps."""
    for ids in given:
        if ids.shape[0] > 1:
            blocks = [ids[i::TASKS] for i in range(min(TASKS, ids.shape[0]))]
            run = lambda blocks=blocks: [model(input_ids=block, use_cache=False).logits for block in blocks]  # noqa: E731
            sizes = {"batch": ids.shape[0], "tokens": ids.shape[1]}
            report.time("a task a row", run, clock, kind="dense models", **sizes)


def in_groups(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """x a b of each row's task, tasks in turn: x [batch, tokens, n], a [tasks, n, rank], b [tasks, rank, m]."""
    tasks = min(len(a), x.shape[0])
    rows = x.unflatten(0, (-1, tasks)).transpose(0, 1)  # [tasks, rows of each, tokens, n]
    out = torch.bmm(torch.bmm(rows.flatten(1, 2), a[:tasks]), b[:tasks])
    return out.unflatten(1, rows.shape[1:3]).transpose(0, 1).flatten(0, 1)


def of_grouped(model: nn.Module, given: list[torch.Tensor], report: Report, clock: Clock, rank: int) -> None:
    """LoRA as two batched products over the tasks."""
    hooks = []
    for name, module in model.named_modules():
        if f"{name}.weight" in matrices(model):
            like = module.weight
            a = 1e-3 * torch.randn(TASKS, module.in_features, rank, dtype=like.dtype, device=like.device)
            b = 1e-3 * torch.randn(TASKS, rank, module.out_features, dtype=like.dtype, device=like.device)
            hooks.append(module.register_forward_hook(lambda _, x, y, a=a, b=b: y + in_groups(x[0], a, b)))
    try:
        for ids in given:
            if ids.shape[0] > 1:
                run = lambda ids=ids: model(input_ids=ids, use_cache=False).logits  # noqa: E731
                sizes = {"batch": ids.shape[0], "tokens": ids.shape[1], "kind": f"grouped LoRA of rank {rank}"}
                report.time("a task a row", run, clock, **sizes)
    finally:
        for hook in hooks:
            hook.remove()


def of_lora(model: nn.Module, given: list[torch.Tensor], report: Report, clock: Clock, rank: int) -> None:
    """PEFT's, which has a loop over the tasks for mixed rows."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        report.left_out.append("LoRA: peft is not installed")
        return
    config = LoraConfig(r=rank, target_modules=list(LORA), init_lora_weights=False)
    peft = get_peft_model(model, config, adapter_name="t0")
    for i in range(1, TASKS):
        peft.add_adapter(f"t{i}", config)
    peft = peft.to(model.dtype).eval()
    for ids in given:
        sizes = {"batch": ids.shape[0], "tokens": ids.shape[1], "kind": f"LoRA of rank {rank}"}
        run = lambda ids=ids: peft(input_ids=ids, use_cache=False).logits  # noqa: E731
        report.time("one task", run, clock, **sizes)
        if ids.shape[0] > 1:
            names = [f"t{i % TASKS}" for i in range(ids.shape[0])]
            mixed = lambda ids=ids, names=names: peft(input_ids=ids, use_cache=False, adapter_names=names)  # noqa: E731
            report.time("a task a row", mixed, clock, **sizes)
    peft.unload()


def run(size: Size, device: str, report: Report, clock: Clock) -> None:
    with torch.inference_mode():
        model, given = llama(size, device), inputs(size, device)
        report.add(what="model", parameters=sum(p.numel() for p in model.parameters()), tasks=TASKS)
        of_base(model, given, report, clock)
        kinds = [
            (f"{kind} at {budget:.1%}", partial(of_kind, model, kind, budget, given, report, clock, device))
            for kind, budget in KINDS
        ]
        equal_bytes, equal_rank = (rank_of(model, KINDS[0][1], bits) for bits in (16, 2))
        others = [("dense models", partial(of_dense, model, given, report, clock))]
        for rank in (equal_bytes, equal_rank):
            others.append((f"grouped LoRA of rank {rank}", partial(of_grouped, model, given, report, clock, rank)))
            others.append((f"LoRA of rank {rank}", partial(of_lora, model, given, report, clock, rank)))
        for name, measure in [*kinds[:1], *others[:3], *kinds[1:], *others[3:]]:  # most telling first
            if not report.late(name):
                report.attempt(name, measure)


def plot(rows: list[dict], path: Path) -> None:
    """Ratios of decoding and prefill to the base, a panel a mode."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [row for row in rows if row.get("ratio") and row["what"] != "base"]
    figure, panels = plt.subplots(1, 2, figsize=(12, 4), sharey=True)
    for panel, mode in zip(panels, ("captured", "eager")):
        of_mode = [row for row in chosen if row["mode"] == mode]
        cases = list(dict.fromkeys((row["batch"], row["tokens"], row["what"]) for row in of_mode))
        for name in dict.fromkeys(_name(row) for row in of_mode):
            line = {(r["batch"], r["tokens"], r["what"]): r["ratio"] for r in of_mode if _name(r) == name}
            panel.plot(range(len(cases)), [line.get(case) for case in cases], marker="o", label=name)
        labels = [f"{batch} x {tokens}\n{what}" for batch, tokens, what in cases]
        panel.set_xticks(range(len(cases)), labels, fontsize=6)
        panel.set(title=mode, ylabel="time / base")
        panel.axhline(1, color="grey", linewidth=0.5)
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _name(row: dict) -> str:
    return row["kind"] + (f" {row['budget']:.1%}" if "budget" in row else "")


def main(
    arguments: list[str] | None = None, device: str = "cuda", clock: Clock | None = None, size: Size | None = None
) -> int:
    """device, clock, size: of a rehearsal, so that nothing is found out on a card that a test could have told."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=170, help="start nothing new after so long")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    if device == "cuda" and not torch.cuda.is_available():
        print("not measured: this needs a CUDA device", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name() if device == "cuda" else f"rehearsal on {device}"
    folder = options.out / slug(name)
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(folder, name, time.monotonic() + options.seconds)
    run(size or Size(), device, report, clock or Clock())
    report.write()
    plot(report.rows, folder / "model.png")
    print(folder / "model.json")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
