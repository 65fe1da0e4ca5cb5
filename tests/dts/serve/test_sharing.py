"""Models in which a row's answer depends on the rows beside it: they share no call, and each is answered as alone."""

import copy
import time

import pytest
import torch

transformers = pytest.importorskip("transformers")

import dts  # noqa: E402
from dts.serve.catalogue import Catalogue  # noqa: E402
from dts.serve.choice import Choice  # noqa: E402
from dts.serve.engine import Engine  # noqa: E402
from dts.serve.job import Collected, Job  # noqa: E402
from dts.serve.sampling import Sampling  # noqa: E402
from tests.dts.serve.asking import whole  # noqa: E402
from tests.versions import TRANSFORMERS_5_0  # noqa: E402

SIZES = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
THETA = dict(rope_theta=10000.0)
LONG = dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[4.0] * 4, original_max_position_embeddings=16)
DYNAMIC = dict(max_position_embeddings=24, rope_parameters=THETA | dict(rope_type="dynamic", factor=4.0))
PLAIN = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2)
GENERATE = {
    "Llama": (SIZES | DYNAMIC, "length"),
    "Phi3": (SIZES | dict(max_position_embeddings=128, rope_parameters=THETA | LONG), "length"),
    "RecurrentGemma": (SIZES | dict(lru_width=32, attention_window_size=16, num_hidden_layers=3), "length"),
    "XLNet": (dict(vocab_size=99, d_model=32, n_layer=2, n_head=4, d_inner=64), "length"),
    "Rwkv": (PLAIN | dict(attention_hidden_size=32, context_length=128), "none"),
    # in transformers 5.0 one token after padding is not as alone
    "Mamba": (PLAIN, "length" if TRANSFORMERS_5_0 else "any"),
}
EMBED = {
    "ConvBert": (SIZES | dict(embedding_size=32, max_position_embeddings=64), "length"),
    "Bert": (SIZES | dict(max_position_embeddings=64), "any"),
}


def made(kind, options, auto):
    torch.manual_seed(0)
    ids = dict(bos_token_id=None, eos_token_id=None, pad_token_id=0)
    model = auto.from_config(getattr(transformers, f"{kind}Config")(**options, **ids)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def answered(model, kind, prompts, folder, tokens=0, pooling="mean"):
    """The engine, and the events of each prompt, all of which wait when it starts."""
    engine = Engine(dts.DTSModel(copy.deepcopy(model)), Catalogue(folder, "base", ""), pooling=pooling)
    jobs = []
    for prompt in prompts:
        jobs.append(Job("x", kind, Choice("base"), Collected(), time.monotonic() + 60))
        how = Sampling(tokens, temperature=0) if tokens else None
        jobs[-1].add(prompt, how, lambda ids: "".join(f"{i} " for i in ids))
        engine.submit(jobs[-1])
    engine.start()
    assert engine.drain(60)
    return engine, [job.tell.events() for job in jobs]


@pytest.mark.parametrize("kind", GENERATE)
def test_answers_are_those_of_a_row_alone(kind, tmp_path):
    options, shares = GENERATE[kind]
    model = made(kind, options, transformers.AutoModelForCausalLM)
    prompts = [[5, 6, 7], list(range(2, 42)), [9, 8, 7], [1], list(range(30, 60))]  # short, and beyond what was trained
    if TRANSFORMERS_5_0 and kind == "RecurrentGemma":
        prompts.remove([1])  # it goes on from the call before where a prompt is a token
    engine, found = answered(model, "generate", prompts, tmp_path, tokens=10)
    assert engine.sharing == shares and engine.continuous is None
    for prompt, events in zip(prompts, found):
        expected = whole(copy.deepcopy(model), prompt, 10)
        assert "".join(e.text for e in events).split() == [str(i) for i in expected]


@pytest.mark.parametrize("kind", EMBED)
def test_embeddings_are_those_of_a_row_alone(kind, tmp_path):
    options, shares = EMBED[kind]
    model = made(kind, options, transformers.AutoModel)
    prompts = [[5, 6, 7], list(range(2, 42)), [9, 8, 7], [1]]
    engine, found = answered(model, "embed", prompts, tmp_path)
    assert engine.sharing == shares and engine.batches == (3 if shares == "length" else 1)
    for prompt, events in zip(prompts, found):
        with torch.no_grad():
            states = model(torch.tensor([prompt])).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(0), dim=0)
        torch.testing.assert_close(torch.tensor(events[0].value), expected, rtol=1e-3, atol=1e-4)
