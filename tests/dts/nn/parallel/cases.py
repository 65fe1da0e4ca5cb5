"""What the processes of a test compute; each compares with a model of one process, and returns what a test looks at."""

import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.models.bert.modeling_bert
import transformers.models.llama.modeling_llama  # before processes are made, which then have them
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import dts
from dts.unseen.choice import choose
from dts_kernels.dispatch import exact_products
from tests.dts.nn.coded import InBytes
from tests.dts.nn.conftest import Maker
from tests.dts.nn.parallel.models import BERT, LLAMA

CLOSE = 1e-5
TASKS: list[Any] = ["a", "sketch", {"a": 0.5, "b": 0.7}, dts.BASE]
ROWS = ["a", "sketch", {"a": 0.3, "sketch": 0.4}, None, "b"]
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.simplefilter("ignore")


def ids(rows: int = 5) -> Tensor:
    return torch.randint(3, 60, (rows, 7), generator=torch.Generator().manual_seed(1))


def distance(one: Any, other: Any) -> float:
    """The largest difference of outputs, in units of the largest output where that is more than 1."""
    one, other = (getattr(x, "logits", x) for x in (one, other))
    return float((one - other).abs().max() / one.abs().max().clamp(min=1))


def sent(model: Any, **given: Any) -> dict[str, int]:
    """Which collectives a call makes, and how many."""
    with CommDebugMode() as mode:
        model(**given)
    return {str(name): count for name, count in mode.get_comm_counts().items()}


def refusal(run: Any) -> str:
    """The words of the error that something raises."""
    try:
        run()
    except (ValueError, RuntimeError, IndexError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


@contextmanager
def answers():
    with torch.no_grad(), exact_products():
        yield


def same_answers(one: Any, other: Any, batch: dict[str, Tensor]) -> dict[str, float]:
    """How far two models are from each other: one task, mixtures, the base, a task a row."""
    found = {}
    with answers():
        for task in TASKS:
            one.set_task(task)
            other.set_task(task)
            found[str(task)] = distance(one(**batch), other(**batch))
        found["rows"] = distance(one(**batch, tasks=ROWS), other(**batch, tasks=ROWS))
        moved = distance(one(**batch, tasks="a"), one(**batch, tasks=dts.BASE))
    assert moved > 1e-3, moved
    return found


def random_llama(**sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(LLAMA | sizes))).eval()


def with_entries(model: dts.DTSModel, base: nn.Module) -> dts.DTSModel:
    """Random tasks of every form of factors: levels, samples, rows and columns that are left out."""
    for seed, name in enumerate(("a", "b", "sketch")):
        model.load_task(name, Maker(seed).entries(base, 0))
    return model


# ---- transformers' plan --------------------------------------------------------------------------------------------


def planned(folder: Path, **options: Any) -> dts.DTSModel:
    config = transformers.distributed.DistributedConfig(tp_plan="auto")
    return dts.DTSModel.from_pretrained(folder / "base", distributed_config=config, **options)


def load_all(model: dts.DTSModel, folder: Path) -> None:
    """The adapter on disk, and two random tasks of every form of factors: levels, samples, gaps."""
    model.load_task("a", folder / "a")
    for seed, name in enumerate(("b", "sketch")):
        model.load_task(name, Maker(seed).entries(random_llama(), 0))


def one_process(folder: Path) -> dts.DTSModel:
    model = dts.DTSModel.from_pretrained(folder / "base")
    load_all(model, folder)
    return model


def llama(folder: Path) -> dict[str, Any]:
    one, model = one_process(folder), planned(folder)
    batch = {"input_ids": ids()}
    with torch.no_grad():
        model(**batch)
        base = sent(model, **batch)
    load_all(model, folder)
    found: dict[str, Any] = {"far": same_answers(one, model, batch), "base": base}
    with torch.no_grad():
        found["sent"] = [sent(model, **batch, tasks=task) for task in ("a", "sketch", {"a": 1, "b": 1}, ROWS)]
    found["status"] = model.status()
    with answers():
        given = {"max_new_tokens": 6, "do_sample": False, "tasks": ROWS}
        found["words"] = torch.equal(one.generate(**batch, **given), model.generate(**batch, **given))
    found["nbytes"] = one.status()["nbytes"], model.status()["nbytes"]
    # tasks come and go
    model.delete_task("b")
    model.load_task("b", folder / "a")
    one.load_task("b", folder / "a")
    found["again"] = same_answers(one, model, batch)
    found["merged"] = refusal(lambda: model.merge_and_unload("a"))
    model.set_task("a")
    found["saved"] = refusal(lambda: model.save_pretrained(folder / "never"))
    found["still"] = same_answers(one, model, batch)
    for name in model.tasks:
        model.delete_task(name)
    found["left"] = model.status()["nbytes"]
    return found


# ---- torch's plan --------------------------------------------------------------------------------------------------

TABLE = RowwiseParallel(input_layouts=Replicate())


def decoder_plan(model: nn.Module) -> dict[str, Any]:
    plan: dict[str, Any] = {"model.embed_tokens": TABLE, "lm_head": ColwiseParallel(output_layouts=Replicate())}
    for i in range(len(model.model.layers)):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
            plan[f"model.layers.{i}.{name}"] = ColwiseParallel()
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            plan[f"model.layers.{i}.{name}"] = RowwiseParallel()
    return plan


def encoder_plan(model: nn.Module) -> dict[str, Any]:
    plan: dict[str, Any] = {"bert.embeddings.word_embeddings": TABLE}
    plan["bert.embeddings.position_embeddings"] = ColwiseParallel(output_layouts=Replicate())
    for i in range(len(model.bert.encoder.layer)):
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense"):
            plan[f"bert.encoder.layer.{i}.{name}"] = ColwiseParallel()
        for name in ("attention.output.dense", "output.dense"):
            plan[f"bert.encoder.layer.{i}.{name}"] = RowwiseParallel()
    return plan


def random_bert(**sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**(BERT | sizes))).eval()


def mesh_of(names: tuple[str, ...] = ("tp",), shape: tuple[int, ...] | None = None) -> Any:
    return init_device_mesh("cpu", shape or (torch.distributed.get_world_size(),), mesh_dim_names=names)


def styles(kind: str) -> dict[str, Any]:
    """A Llama or a BERT whose layers torch's own styles have split, under random tasks."""
    make, plan = {"llama": (random_llama, decoder_plan), "bert": (random_bert, encoder_plan)}[kind]
    one = with_entries(dts.DTSModel(make()), make())
    split = make()
    parallelize_module(split, mesh_of(), plan(split))
    batch = {"input_ids": ids(), "attention_mask": torch.ones(5, 7, dtype=torch.long)}
    with torch.no_grad():
        base = sent(split, **batch)
    model = with_entries(dts.DTSModel(split), make())
    found: dict[str, Any] = {"far": same_answers(one, model, batch), "base": base}
    with torch.no_grad():
        found["sent"] = [sent(model, **batch, tasks=task) for task in ("a", "sketch", {"a": 1, "b": 1}, ROWS)]
    found["grouped"] = model.status()["grouped"]
    found["gradients"] = gradients(one, model, batch)
    return found


def gradients(one: Any, other: Any, batch: dict[str, Tensor]) -> float:
    """How far the gradients of the base's parameters are from each other, relative to each one's largest, under tasks.

    Some are zero but for rounding, a key's bias moves all scores alike: those are relative to a hundredth of the
    largest of all.
    """
    with exact_products():
        for model in (one, other):
            model(**batch, tasks=ROWS).logits.square().sum().backward()
    found = [(a.grad, b.grad) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True)]
    least = max(float(a.abs().max()) for a, _ in found) / 100
    whole = [(a, b.full_tensor() if isinstance(b, DTensor) else b) for a, b in found]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=least)) for a, b in whole)


def chosen(folder: Path, other: Path) -> list[Any]:
    """What rows choose of themselves, in one process and in models that both plans have split."""
    tasks = {"a": folder / "a", "other": other}
    styled = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
    parallelize_module(styled, mesh_of(), decoder_plan(styled))
    models = [dts.DTSModel.from_pretrained(folder / "base"), planned(folder), dts.DTSModel(styled)]
    for model in models:
        for name, adapter in tasks.items():
            model.load_task(name, adapter)
    return [model.choose_tasks({"input_ids": ids()}).tasks for model in models]


class Rounding:
    """Of tasks that are near-duplicates each process has another one for the best, by what its sums rounded to."""

    def __init__(self, router: Any):
        self.router = router

    def route(self, model: Any, batch: Any, floor: float = 0.0) -> Any:
        choice = self.router.route(model, batch, floor)
        best = (torch.distributed.get_rank() + torch.arange(len(choice.scores))) % 2
        choice.scores[:] = choice.scores.mean()
        choice.scores[range(len(best)), best] += 1e-6
        return choose(choice.scores, choice.names, floor)


def near_duplicates(folder: Path) -> dict[str, Any]:
    """What a process of a split model takes where it would itself choose otherwise than another, and what one takes of
    a model whose every process has rows of its own."""
    config = transformers.distributed.DistributedConfig(tp_plan="auto")
    tasks = {name: folder / "a" for name in ("a", "same")}
    split = dts.DTSModel.from_pretrained(folder / "base", tasks, distributed_config=config)
    apart = dts.DTSModel.from_pretrained(folder / "base", tasks)
    shard_all(apart.model)
    found: dict[str, Any] = {}
    batch = {"input_ids": ids()}
    for name, model in (("split", split), ("apart", apart)):
        own = model.choose_tasks(batch).tasks  # the router is made
        assert set(own) <= set(tasks)
        model._router = Rounding(model._router)
        found[name] = model.choose_tasks(batch).tasks
    with torch.no_grad():
        found["answers"] = split(**batch, tasks="auto").logits, split(**batch, tasks=found["split"]).logits
    found["own"] = Rounding(split._router.router).route(split, batch).tasks
    return found


# ---- other splits --------------------------------------------------------------------------------------------------


def uneven() -> dict[str, Any]:
    """Ids that do not divide, in a table and in the head that is tied to it."""
    sizes = {"vocab_size": 61, "tie_word_embeddings": True}
    one = with_entries(dts.DTSModel(random_llama(**sizes)), random_llama(**sizes))
    split = random_llama(**sizes)
    plan = {key: style for key, style in decoder_plan(split).items() if key in ("model.embed_tokens", "lm_head")}
    parallelize_module(split, mesh_of(), plan)
    split.tie_weights()
    model = with_entries(dts.DTSModel(split), random_llama(**sizes))
    found: dict[str, Any] = {"far": same_answers(one, model, {"input_ids": ids()})}
    found["beyond"] = refusal(lambda: model(input_ids=torch.tensor([[61]]), tasks="a"))
    found["nbytes"] = one.status()["nbytes"], model.status()["nbytes"]
    return found


class Block(nn.Module):
    """A norm before two linear layers, as in every transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.norm = nn.Sequential(Block(), Block()), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(x))


def sequences() -> dict[str, Any]:
    """Between the linear layers each process has a part of every sequence."""
    one = with_entries(dts.DTSModel(Blocks()), Blocks())
    split, mesh = Blocks(), mesh_of()
    plan: dict[str, Any] = {"norm": SequenceParallel(use_local_output=True)}
    for i in range(2):
        plan[f"blocks.{i}.norm"] = SequenceParallel()
        plan[f"blocks.{i}.up"] = ColwiseParallel(input_layouts=Shard(1))
        plan[f"blocks.{i}.down"] = RowwiseParallel(output_layouts=Shard(1))
    parallelize_module(split, mesh, plan)
    model = with_entries(dts.DTSModel(split), Blocks())
    x = torch.randn(5, 8, 16, generator=torch.Generator().manual_seed(2))
    mine = x.chunk(mesh.size(), 1)[mesh.get_local_rank()]
    far = {}
    with answers():
        for tasks in ("a", {"a": 0.5, "b": 0.7}, ROWS):
            whole = one(x, tasks=tasks).chunk(mesh.size(), 1)[mesh.get_local_rank()]
            far[str(tasks)] = distance(whole, model(mine, tasks=tasks))
    return {"far": far}


# ---- what is refused -----------------------------------------------------------------------------------------------


def few_heads(folder: Path) -> list[str]:
    """One head of keys for two processes: what the base says of it, and what a model with tasks says."""
    config = transformers.distributed.DistributedConfig(tp_plan="auto")
    base = transformers.LlamaForCausalLM.from_pretrained(folder, distributed_config=config)
    model = with_entries(dts.DTSModel.from_pretrained(folder, distributed_config=config), base)
    with torch.no_grad():
        return [refusal(partial(one, input_ids=ids())) for one in (base, model)]


def placed(module: nn.Module, mesh: Any, placements: list[Any]) -> nn.Module:
    """A module, each of whose parameters lies on a mesh like this."""
    for name, parameter in list(module.named_parameters()):
        tensor = distribute_tensor(parameter.detach(), mesh, placements)
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return module


def loading(model: nn.Module, plain: nn.Module) -> str:
    """What is said of random tasks of ``plain`` that are loaded into ``model``."""
    return refusal(lambda: dts.DTSModel(model).load_task("a", Maker().entries(plain, 0)))


def refused() -> dict[str, str]:
    found, mesh = {}, mesh_of()
    few = nn.Sequential(nn.Linear(8, 1))
    parallelize_module(few, mesh, {"0": ColwiseParallel()})
    found["none"] = loading(few, nn.Sequential(nn.Linear(8, 1)))

    wide = Blocks()
    for block in wide.blocks:
        placed(block.up, mesh_of(("dp", "tp"), (1, mesh.size())), [Shard(0), Replicate()])
    found["mesh"] = loading(wide, Blocks())

    bilinear = nn.Sequential(placed(nn.Bilinear(4, 4, 6), mesh, [Shard(0)]))
    found["layer"] = loading(bilinear, nn.Sequential(nn.Bilinear(4, 4, 6)))
    convolution = nn.Sequential(placed(nn.Conv2d(4, 6, 3), mesh, [Replicate()]))
    found["whole layer"] = loading(convolution, nn.Sequential(nn.Conv2d(4, 6, 3)))

    coded = nn.Sequential(placed(InBytes(nn.Linear(8, 6)), mesh, [Shard(0)]))
    found["quantised"] = loading(coded, nn.Sequential(nn.Linear(8, 6)))

    head = nn.Sequential(nn.Linear(8, 4))
    parallelize_module(head, mesh, {"0": ColwiseParallel()})
    own = {"0.weight": Maker().head("0.weight", 6, 8), "0.bias": Maker().head("0.bias", 6)}
    found["head"] = refusal(lambda: dts.DTSModel(head).load_task("a", own))
    return found


def late() -> dict[str, Any]:
    """A model that is split under its tasks, and after they are gone."""
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    one, model = dts.DTSModel(Blocks()), dts.DTSModel(Blocks())
    for each in (one, model):
        each.load_task("a", Maker().entries(Blocks(), 0))
    found: dict[str, Any] = {"late": refusal(lambda: parallelize_module(model.model.blocks[0], mesh_of(), plan))}
    model.delete_task("a")
    parallelize_module(model.model.blocks[0], mesh_of(), plan)
    model.load_task("a", Maker().entries(Blocks(), 0))
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))
    with answers():
        found["far"] = distance(one(x, tasks="a"), model(x, tasks="a"))
    given = DTensor.from_local(torch.zeros(2, 3, 16), mesh_of(), [Shard(1)], run_check=False)
    found["input"] = refusal(lambda: model.model.blocks[0].up.forward(given))
    return found


# ---- FSDP2 ---------------------------------------------------------------------------------------------------------


def sharded(folder: Path) -> dict[str, Any]:
    """``fully_shard`` before tasks are loaded, and after."""
    one = one_process(folder)
    before, after = (dts.DTSModel.from_pretrained(folder / "base") for _ in range(2))
    batch = {"input_ids": ids()}
    shard_all(before.model)
    with torch.no_grad():
        before(**batch)
        base = sent(before, **batch)
    load_all(before, folder)
    load_all(after, folder)
    shard_all(after.model)
    found: dict[str, Any] = {"base": base}
    for name, model in (("before", before), ("after", after)):
        found[name] = same_answers(one, model, batch)
        with torch.no_grad():
            found[f"{name} sent"] = sent(model, **batch, tasks=ROWS)
        with answers():
            given = {"max_new_tokens": 5, "do_sample": False, "tasks": ROWS}
            found[f"{name} words"] = torch.equal(one.generate(**batch, **given), model.generate(**batch, **given))
        model.delete_task("a")
        model.load_task("a", folder / "a")
        found[f"{name} again"] = same_answers(one, model, batch)
        found[f"{name} merged"] = refusal(partial(model.merge_and_unload, "a"))
    found["gradients"] = gradients(one, before, batch)
    return found


def shard_all(model: nn.Module) -> None:
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)


def both() -> str:
    """Tensor parallel and fully sharded at once, on a mesh of two dimensions."""
    mesh = mesh_of(("dp", "tp"), (2, torch.distributed.get_world_size() // 2))
    model = Blocks()
    for i in range(2):
        parallelize_module(model.blocks[i], mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    return loading(model, Blocks())
