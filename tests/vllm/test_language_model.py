"""A real language model, SmolLM2-135M, with tasks packed in vLLM's engine: their answers are `DTSModel`'s."""

import copy

import pytest
import torch

import dts
from benchmarks.quality.smollm2 import base_folder
from dts.demo.tasks import MissingData
from tests.vllm.conftest import ONE_PROCESS

pytestmark = pytest.mark.vllm
TEXTS = ["The capital of France is", "def add(a, b):", "Once upon a time there was a small"]
TOKENS = 12
CHANGED = ("model.layers.0.", "model.layers.15.", "model.layers.29.", "model.norm.")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """base, adapters: folders.  The fine-tune moves three blocks and the last norm, embeddings stay."""
    import transformers

    root = tmp_path_factory.mktemp("smollm2")
    try:
        base = base_folder(root)
    except MissingData as missing:
        pytest.skip(str(missing))
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned, draw = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.startswith(CHANGED):
                parameter += 0.2 * parameter.std() * torch.randn(parameter.shape, generator=draw)
    tuned.save_pretrained(root / "tuned")
    for method in ("residual", "sketch"):
        dts.compress(base, root / "tuned", out=root / "adapters" / method, method=method, budget=0.004)
    return base, root / "adapters"


def test_tasks_of_a_real_language_model_answer_as_the_single_task_models(place, engine):
    import transformers

    base, adapters = place
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    prompts, tasks = [tokenizer(text).input_ids for text in TEXTS], ["residual", "sketch", None]
    batch = [
        {"prompt": prompt, "task": task, "path": task and str(adapters / task)} for prompt in prompts for task in tasks
    ]
    options = dict(model=str(base), dtype="float32", max_model_len=128, max_num_seqs=16, enforce_eager=True)
    options |= dict(enable_lora=True, max_loras=2)
    (answers,), log = engine(
        {"options": options, "tokens": TOKENS, "batches": [batch]}, **ONE_PROCESS, DTS_VLLM_MODE="packed"
    )
    assert log.count("runs packed") == 2
    model = dts.DTSModel.from_pretrained(base, adapters={task: adapters / task for task in tasks if task})
    own = []
    for one, found in zip(batch, answers):
        model.set_task(one["task"] or dts.BASE)
        ids = torch.tensor([one["prompt"] + found["tokens"]])
        with torch.no_grad():
            scores = model(input_ids=ids).logits.log_softmax(-1)[0, len(one["prompt"]) - 1 : -1]
        best, chosen = scores.max(-1).values, scores[range(TOKENS), found["tokens"]]
        # greedy, but for two tokens that are equally likely
        assert (best - chosen).max() < 1e-3, (one["task"], one["prompt"])
        assert found["logprobs"] == pytest.approx(chosen.tolist(), abs=2e-3, rel=0), (one["task"], one["prompt"])
        own.append(tuple(found["tokens"]))
    assert len(set(own)) >= 2 * len(TEXTS)  # the tasks are not the base
