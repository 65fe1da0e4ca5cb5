"""Tasks in vLLM's engine from their packed bits: any of them in one batch, each answering as its single-task model."""

import re
import shutil
from types import SimpleNamespace

import pytest

import dts
from tests.vllm.conftest import PROMPTS, TOKENS, Models, Server, all_at_once, as_found, end

pytestmark = pytest.mark.vllm
TASKS = ["exact", "a", "b", "sketch", None]
WITHIN = 2e-4  # of a logprob: products of packed bits take their inputs in 16 bits, in batches of other rows


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    shutil.copytree(models.adapters / "a", models.adapters / "swapped")
    options = ("--max-loras", "4", "--max-cpu-loras", "4")
    found = Server(models, tmp_path_factory.mktemp("packed"), *options, DTS_VLLM_MODE="packed")
    yield found
    end(found.process)
    shutil.rmtree(models.adapters / "swapped")


def test_every_task_answers_as_its_single_task_model_in_a_mixed_batch(server, models):
    asked = [(task, prompt) for prompt in PROMPTS for task in TASKS]
    for (task, prompt), answer in zip(asked, all_at_once(server, asked)):
        models.equal(as_found(answer), task, prompt, WITHIN)


def test_a_task_takes_its_packed_bytes(server):
    found = re.findall(r"the task (\w+) runs packed: (\d+) bytes in memory, (\d+) on disk", server.log.read_text())
    assert {name for name, _, _ in found} >= {"exact", "a", "b", "sketch"}
    assert all(0.5 * int(disk) < int(memory) <= 1.1 * int(disk) for _, memory, disk in found), found


def test_prompts_have_their_own_tasks_logprobs(server, models):
    asked = [(task, PROMPTS[3]) for task in TASKS]
    answers = all_at_once(server, asked, prompt_logprobs=0, temperature=0)
    for (task, prompt), answer in zip(asked, answers):
        steps = answer["choices"][0]["prompt_logprobs"][1:]
        own = [step[str(token)]["logprob"] for step, token in zip(steps, prompt[1:])]
        models.equal(as_found(answer) | {"prompt": own}, task, prompt, WITHIN)


def test_a_name_that_is_replaced_never_meets_what_the_other_left(server, models):
    """Blocks of vLLM's cache belong to what an adapter is: its prompt is cached under the name it has again."""
    prompt = list(range(100, 140))
    for source in ("a", "b"):
        shutil.rmtree(models.adapters / "swapped")
        shutil.copytree(models.adapters / source, models.adapters / "swapped")
        for _ in range(2):
            (answer,) = all_at_once(server, [("swapped", prompt)])
            models.equal(as_found(answer), source, prompt, WITHIN)
        assert server.post("/v1/unload_lora_adapter", {"lora_name": "swapped"})[0] == 200


def test_an_adapter_that_is_replaced_under_a_path_is_refused(server, models):
    """Of a path that a caller gives vLLM knows no digest, and keeps its blocks by it."""
    place = models.root / "given"
    asked = {"lora_name": "given", "lora_path": str(place)}
    shutil.copytree(models.adapters / "a", place)
    status, answer = server.post("/v1/load_lora_adapter", asked)
    assert status == 200, answer
    models.equal(as_found(all_at_once(server, [("given", PROMPTS[0])])[0]), "a", PROMPTS[0], WITHIN)
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "given"})[0] == 200
    shutil.rmtree(place)
    shutil.copytree(models.adapters / "b", place)
    status, answer = server.post("/v1/load_lora_adapter", asked)
    assert status == 500 and "another adapter was loaded from" in str(answer), answer  # vLLM's status for a worker's no
    models.equal(as_found(all_at_once(server, [("a", PROMPTS[0])])[0]), "a", PROMPTS[0], WITHIN)


def test_more_tasks_than_there_is_room_for_take_turns(server, models):
    """Room for four: with the fifth the one that waited longest goes, and comes again when it is asked for."""
    for task in ("exact", "a", "b", "sketch", "swapped", "exact", "a"):
        (answer,) = all_at_once(server, [(task, PROMPTS[1])])
        models.equal(as_found(answer), "b" if task == "swapped" else task, PROMPTS[1], WITHIN)


@pytest.mark.parametrize(
    "name, status, words",
    [
        ("nobody", 404, "does not exist"),
        ("../base", 404, "does not exist"),
        ("other", 400, "of another base"),
        ("damaged", 409, "is damaged"),
    ],
)
def test_what_cannot_run_is_refused_and_the_engine_goes_on(server, models, name, status, words):
    found, answer = server.complete(name, PROMPTS[0])
    assert found == status and words in str(answer), answer
    (after,) = all_at_once(server, [("a", PROMPTS[0])])
    models.equal(as_found(after), "a", PROMPTS[0], WITHIN)


def test_two_processes_share_a_model(tied: Models, engine):
    """Tensor parallel: rows and columns of every part, samples cut within their blocks, one matrix for both ends."""
    tasks = ["a", "sketch", None]
    batch = [
        {"prompt": prompt, "task": task, "path": task and str(tied.adapters / task)}
        for prompt in PROMPTS[:2]
        for task in tasks
    ]
    options = dict(model=str(tied.base), dtype="float32", max_model_len=128, max_num_seqs=8, enforce_eager=True)
    options |= dict(enable_lora=True, max_loras=2, tensor_parallel_size=2, skip_tokenizer_init=True)
    (answers,), _ = engine(
        {"options": options, "tokens": TOKENS, "prompt_logprobs": 0, "batches": [batch]}, DTS_VLLM_MODE="packed"
    )
    for one, found in zip(batch, answers):
        tied.equal(found, one["task"], one["prompt"], WITHIN)
    sample = dts.Adapter.load(tied.adapters / "sketch").entries["model.layers.0.mlp.down_proj.weight"]
    assert 128 % sample.factors.samples[0].stride  # the second process's columns begin within a group


def test_another_version_is_refused_by_name(monkeypatch):
    import vllm

    from dts.vllm.packed import engine

    monkeypatch.setattr(vllm, "__version__", "0.99.0+cpu")
    with pytest.raises(ValueError, match=r"made for version 0\.32\.0; this is 0\.99\.0\+cpu.*DTS_VLLM_MODE=lora"):
        engine.install()


def test_an_engine_that_was_never_run_is_refused_with_every_reason():
    import torch
    from vllm.config import CompilationMode

    from dts.vllm.packed.engine import Manager

    model = dict(quantization="awq", head_dtype=torch.float32, dtype=torch.bfloat16)
    model |= dict(runner_type="pooling", is_multimodal_model=True)
    config = SimpleNamespace(
        model_config=SimpleNamespace(**model),
        parallel_config=SimpleNamespace(pipeline_parallel_size=2),
        compilation_config=SimpleNamespace(mode=CompilationMode.VLLM_COMPILE),
        speculative_config=object(),
        lora_config=SimpleNamespace(max_cpu_loras=1),
    )
    with pytest.raises(ValueError) as error:
        Manager(config, torch.device("meta"))
    words = (
        "device is meta",
        "--enforce-eager",
        "quantised (awq)",
        "beside text",
        "pooling",
        "stages",
        "drafts",
        "dtype",
    )
    assert all(word in str(error.value) for word in words), error.value
