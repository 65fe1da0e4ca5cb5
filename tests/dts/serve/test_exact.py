"""Tasks that keep every bit, in the engine: their answers are the fine-tune's own, whatever else is in the batch."""

import shutil

import pytest
import torch
import transformers

import dts
from tests.dts.serve.asking import alone, ask, texts, whole
from tests.dts.serve.conftest import Place


@pytest.fixture
def place(decoder, tmp_path):
    """The decoder with its task a, and with fine-tunes of which few elements moved and of which all did."""
    made = Place(tmp_path, ["a", "light", "heavy"])
    made.base = decoder.base
    shutil.copytree(decoder.adapters / "a", made.adapters / "a")
    for seed, (name, share) in enumerate({"light": 0.1, "heavy": 1.0}.items()):
        draw = torch.Generator().manual_seed(seed)
        tuned = transformers.AutoModelForCausalLM.from_pretrained(decoder.base)
        with torch.no_grad():
            for parameter in tuned.parameters():
                moved = torch.rand(parameter.shape, generator=draw) < share
                parameter += 0.2 * moved * torch.randn(parameter.shape, generator=draw)
        tuned.save_pretrained(tmp_path / name)
        dts.compress(decoder.base, tmp_path / name, out=made.adapters / name, method="exact")
    return made


def test_a_task_that_keeps_every_bit_says_what_its_fine_tune_says(place, start):
    served = start(place, run=False)
    asked = ["light", "a", "heavy", "base", "light"]
    prompts = ["hi", "a longer prompt", "x", "hi", "of another length"]
    jobs = [ask(served, "generate", m, p, max_tokens=8, temperature=0) for m, p in zip(asked, prompts)]
    served.engine.start()
    found = [texts(job)[0] for job in jobs]
    text = served.texts.base
    for name, prompt, answer in zip(asked, prompts, found):
        if name in ("light", "heavy"):
            tuned = transformers.AutoModelForCausalLM.from_pretrained(place.adapters.parent / name)
            assert answer == text.decode(whole(tuned, text.encode(prompt), 8)), name
        else:
            assert answer == alone(place, served, name, prompt, 8)
    assert found[0] != found[3] and len(set(found)) == 5
    assert served.engine.batches == 9  # one a token, as all ran together; "x" began in one of its own
