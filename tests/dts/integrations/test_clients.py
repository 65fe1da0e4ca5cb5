"""Ways to run a model that libraries have, on a `DTSModel`: generate, offloading, PEFT, torch.compile, the hub."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")

import dts  # noqa: E402
from tests.dts.nn.conftest import Maker, dense  # noqa: E402

CONFIG = dict(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
IDS = torch.tensor([[5, 9, 13, 40, 7], [33, 8, 21, 50, 11]])
GREEDY = dict(max_new_tokens=5, do_sample=False)


@pytest.fixture(scope="module")
def setting():
    """(base, a DTSModel with tasks a and b, the dense model of each)."""
    torch.manual_seed(0)
    options = dict(num_key_value_heads=1, bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=64)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG, **options)).eval()
    maker, model = Maker(3), dts.DTSModel(copy.deepcopy(base))
    entries = {task: maker.entries(base, skip=0) for task in "ab"}
    for task, own in entries.items():
        model.load_task(task, own)
    return base, model, {task: dense(base, [(own, 1.0)]) for task, own in entries.items()}, entries


def generated(model, rows, **options):
    return model.generate(rows, attention_mask=torch.ones_like(rows), **{**GREEDY, **options})


class Stream(transformers.generation.streamers.BaseStreamer):
    def __init__(self):
        self.got, self.ended = [], False

    def put(self, value):
        self.got += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_a_static_cache_with_a_task_a_row(setting):
    _, model, twins, _ = setting
    found = generated(model, IDS, tasks=["a", "b"], cache_implementation="static", disable_compile=True)
    for row, task in enumerate("ab"):
        assert torch.equal(found[row], generated(twins[task], IDS[row : row + 1])[0])


def test_sampling_draws_the_same(setting):
    _, model, twins, _ = setting
    with torch.random.fork_rng():
        found = []
        for one, options in ((model, {"tasks": "a"}), (twins["a"], {})):
            torch.manual_seed(7)
            found.append(generated(one, IDS, do_sample=True, top_k=8, temperature=0.7, **options))
    assert torch.equal(*found)


def test_assisted_by_the_base_and_as_an_assistant(setting):
    base, model, twins, _ = setting
    wanted = generated(twins["b"], IDS[:1])
    assert torch.equal(generated(model, IDS[:1], tasks="b", assistant_model=base), wanted)
    assert torch.equal(generated(model, IDS[:1], tasks="b", prompt_lookup_num_tokens=2), wanted)
    assert torch.equal(generated(base, IDS[:1], assistant_model=model), generated(base, IDS[:1]))


def test_streaming(setting):
    _, model, twins, _ = setting
    stream = Stream()
    found = generated(model, IDS[:1], tasks="a", streamer=stream)
    assert stream.ended and stream.got == found[0].tolist() == generated(twins["a"], IDS[:1])[0].tolist()


# ---- accelerate


OFFLOADS = {
    "cpu": lambda a, model, folder: a.cpu_offload(model, execution_device=torch.device("cpu")),
    "disk": lambda a, model, folder: a.disk_offload(model, folder, execution_device=torch.device("cpu")),
    "dispatch": lambda a, model, folder: a.dispatch_model(
        model,
        {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
        | {"lm_head": "disk", "model.rotary_emb": "cpu"},
        main_device="cpu",
        offload_dir=folder,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("order", ["offloaded, then loaded", "loaded, then offloaded"])
@pytest.mark.parametrize("how", OFFLOADS)
def test_offloaded_weights(setting, how, order, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    base, model, twins, entries = setting
    if order.startswith("offloaded"):
        inner = copy.deepcopy(base)
        OFFLOADS[how](accelerate, inner, tmp_path)
        one = dts.DTSModel(inner)
        for task, own in entries.items():
            one.load_task(task, own)
    else:
        one = copy.deepcopy(model)
        OFFLOADS[how](accelerate, one.model, tmp_path)
    assert any(p.is_meta for p in one.model.parameters())
    wanted = torch.cat([twins[task](IDS[row : row + 1]).logits for row, task in enumerate("ab")])
    torch.testing.assert_close(one(IDS, tasks=["a", "b"]).logits, wanted, atol=2e-3, rtol=0)
    torch.testing.assert_close(one(IDS[:1], tasks="b").logits, twins["b"](IDS[:1]).logits, atol=2e-3, rtol=0)
    torch.testing.assert_close(one(IDS).logits, base(IDS).logits, atol=1e-5, rtol=0)
    assert not one.status()["grouped"]  # hooks call the forward that the layer has now
    with pytest.raises(ValueError, match="offloaded.*dts apply"):
        one.merge_and_unload("a")


# ---- PEFT


@torch.no_grad()
def test_a_lora_above_follows_the_task(setting):
    peft = pytest.importorskip("peft")
    _, model, twins, _ = setting
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    above, inner = None, copy.deepcopy(model)
    for task in "ba":
        if above is None:
            torch.manual_seed(1)
            above = peft.get_peft_model(inner, lora)
        torch.manual_seed(1)
        wanted = peft.get_peft_model(copy.deepcopy(twins[task]), lora)
        inner.set_task(task)
        torch.testing.assert_close(above(IDS).logits, wanted(IDS).logits, atol=5e-3, rtol=0)


@torch.no_grad()
def test_tasks_over_a_merged_lora(setting):
    peft = pytest.importorskip("peft")
    base, _, _, entries = setting
    torch.manual_seed(1)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    merged = peft.get_peft_model(copy.deepcopy(base), lora).merge_and_unload()
    wanted = dense(merged, [(entries["a"], 1.0)])(IDS).logits
    model = dts.DTSModel(merged)
    model.load_task("a", entries["a"])
    torch.testing.assert_close(model(IDS, tasks="a").logits, wanted, atol=2e-3, rtol=0)


# ---- torch.compile


@pytest.mark.exports
@torch.no_grad()
def test_a_compiled_base_takes_tasks_and_reloads_without_another_program(setting):
    _, model, _, entries = setting
    one, programs = copy.deepcopy(model), 0

    def count(graph, example_inputs):
        nonlocal programs
        programs += 1
        return graph.forward

    torch._dynamo.reset()
    one.model.compile(fullgraph=True, backend=count)
    for tasks in (["a", "b"], ["b", "a"], [dts.BASE, "b"], ["a", "b"]):
        found = one(IDS, tasks=tasks).logits
        torch.testing.assert_close(found, model(IDS, tasks=tasks).logits, atol=1e-5, rtol=0)
    assert programs == 1

    def again():
        one.load_task("a", entries["a"])
        found = one(IDS, tasks=["a", "b"]).logits
        torch.testing.assert_close(found, model(IDS, tasks=["a", "b"]).logits, atol=1e-5, rtol=0)

    for _ in range(3):  # while a task is replaced both are there, in another slot
        again()
    assert programs == 1


# ---- the hub


def test_pushing_without_a_network_says_so(setting, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Exception, match="offline mode is enabled"):
        setting[1].push_to_hub("nobody/nothing")
