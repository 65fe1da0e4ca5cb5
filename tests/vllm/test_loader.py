"""``--load-format dts``: one task merged while vLLM loads it."""

import weakref

import pytest

from tests.vllm.conftest import ONE_PROCESS, PROMPTS, TOKENS

pytestmark = pytest.mark.vllm
OPTIONS = dict(dtype="float32", max_model_len=128, max_num_seqs=8, enforce_eager=True, skip_tokenizer_init=True)


@pytest.mark.parametrize("task, processes", [("a", {}), ("sketch", ONE_PROCESS)], ids=["a", "sketch"])
def test_a_merged_task_answers_as_the_single_task_model(models, engine, task, processes):
    job = {
        "options": OPTIONS
        | {
            "model": str(models.base),
            "load_format": "dts",
            "model_loader_extra_config": {"adapter": str(models.adapters / task)},
        },
        "tokens": TOKENS,
        "prompt_logprobs": 0,
        "batches": [[{"prompt": prompt, "task": None} for prompt in PROMPTS]],
    }
    (answers,), _ = engine(job, **processes)
    for prompt, found in zip(PROMPTS, answers):
        models.equal(found, task, prompt, within=1e-4)


def test_mistakes_are_told_before_a_tensor_is_made(models, tmp_path):
    from vllm.config.load import LoadConfig

    from dts.checkpoint import Mismatch
    from dts.vllm.loader import Loader

    class Model:  # of vLLM's config what the loader asks
        model, revision, hf_config = str(models.base), None, models.model(None).config

    with pytest.raises(ValueError, match="needs the folder of an adapter"):
        Loader(LoadConfig(load_format="dts"))
    other = {"adapter": str(models.adapters / "other")}
    with pytest.raises(Mismatch, match="is not the base"):
        Loader(LoadConfig(load_format="dts", model_loader_extra_config=other)).get_all_weights(Model, None)
    with pytest.raises(ValueError, match="Unexpected extra config keys"):
        Loader(LoadConfig(load_format="dts", model_loader_extra_config=other | {"speed": "full"}))


def test_tensors_are_made_one_at_a_time(models):
    from vllm.config.load import LoadConfig

    from dts.vllm.loader import Loader

    class Model:
        model, revision, hf_config = str(models.base), None, models.model(None).config

    adapter = {"adapter": str(models.adapters / "sketch")}
    made = Loader(LoadConfig(load_format="dts", model_loader_extra_config=adapter)).get_all_weights(Model, None)
    known = []
    for _, tensor in made:
        known.append(weakref.ref(tensor))
        del tensor
        assert sum(one() is not None for one in known) <= 1
    assert len(known) == 21
