"""The guide's recipe: decoding in a CUDA graph, each row with its task, with a static cache of transformers."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")

import dts  # noqa: E402
from dts.nn.routing import state as states  # noqa: E402
from tests.dts.nn.conftest import Maker  # noqa: E402

CONFIG = dict(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
PROMPT = torch.tensor([[5, 9, 13, 40, 7], [33, 8, 21, 50, 11]])
TOKENS = 5


def setting(device):
    torch.manual_seed(0)
    options = dict(num_key_value_heads=1, bos_token_id=1, eos_token_id=None, pad_token_id=0, max_position_embeddings=64)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG, **options)).eval()
    maker, model = Maker(3), dts.DTSModel(copy.deepcopy(base))
    for task in "ab":
        model.load_task(task, maker.entries(base, skip=0))
    return model.to(device), PROMPT.to(device)


def decoded(model, step, cache, prompt, tasks):
    """By the recipe."""
    model.set_tasks(tasks)
    cache.reset()
    ids = model(input_ids=prompt, past_key_values=cache).logits[:, -1:].argmax(-1)
    found = [ids]
    for _ in range(TOKENS - 1):
        ids = step(input_ids=ids, past_key_values=cache).logits[:, -1:].argmax(-1)
        found.append(ids)
    return torch.cat(found, 1)


def check(model, prompt, record):
    with torch.no_grad():
        cache = transformers.StaticCache(config=model.config, max_cache_len=16)
        model.set_tasks(["a", "b"])
        step = model.capture(*record, input_ids=prompt[:, :1], past_key_values=cache)
        for tasks in (["a", "b"], ["b", "a"], ["b", None]):
            found = decoded(model, step, cache, prompt, tasks)
            for row, task in enumerate(tasks):
                alone = model.generate(
                    prompt[row : row + 1],
                    tasks=dts.BASE if task is None else task,
                    max_new_tokens=TOKENS,
                    do_sample=False,
                )
                assert torch.equal(found[row], alone[0, prompt.shape[1] :])


def test_decoding_by_a_stand_in_for_a_graph(monkeypatch):
    def captured(run):
        with monkeypatch.context() as patch:
            patch.setattr(states, "_capturing", lambda device: True)
            return run()

    def record(run):
        run()
        out = captured(run)
        return lambda: out.logits.copy_(captured(run).logits), out

    check(*setting("cpu"), [record])


@pytest.mark.gpu
def test_decoding_in_a_graph():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    check(*setting("cuda"), [])
