"""Slots, rows of a batch and places, without vLLM."""

import pytest
import torch

import dts
from dts.serve.catalogue import Catalogue
from dts.vllm.packed.batch import NONE, Batch
from dts.vllm.packed.layers import LinearDelta, NormDelta, Place
from dts.vllm.packed.tasks import Tasks
from dts.vllm.places import load_place, place_of
from tests.dts.exports.conftest import made  # noqa: F401  a fixture


def test_rows_of_tokens_of_heads_and_of_logits():
    batch, hidden = Batch(), torch.zeros(6, 4)
    assert batch.rows_of(hidden) is NONE and batch.logits(hidden) is NONE
    batch.set([0, 0, -1, 1, 1, 1], [0, -1, 1])
    assert batch.rows_of(hidden).slots.tolist() == [0, 0, -1, 1, 1, 1] and batch.rows_of(hidden).active == {0, 1}
    assert batch.rows_of(torch.zeros(12, 4)).slots.tolist() == [0, 0, 0, 0, -1, -1, 1, 1, 1, 1, 1, 1]
    with pytest.raises(RuntimeError, match="7 rows in a batch of 6"):
        batch.rows_of(torch.zeros(7, 4))
    assert batch.logits(hidden[[1, 2, 5]]).slots.tolist() == [0, -1, 1]
    assert batch.logits(hidden[3:6]).slots.tolist() == [1, 1, 1]  # as many rows as are sampled, and yet of one prompt
    assert batch.logits(hidden[3:5]).routing.slots.tolist() == [[1]]
    batch.set([-1, -1], [-1])
    assert batch.rows_of(hidden[:2]) is NONE
    batch.set([1, 1, -1], [-1])  # what is sampled is the base's, the rest of a prompt is not
    assert batch.logits(hidden[[2]]) is NONE


def linear_places(model) -> dict[str, Place]:
    """Every parameter of a model as vLLM would have it in one process, none of them fused."""
    found, shared = {}, {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shape = tuple(parameter.shape)
        if parameter.dim() == 1:
            found[name] = Place(NormDelta(), "weight", shape)
        else:
            delta = shared.setdefault(id(parameter), LinearDelta(*shape))
            found[name] = Place(delta, "weight", shape, 0, range(shape[0]), range(shape[1]))
    return found


@pytest.fixture(scope="module")
def llama(made):  # noqa: F811
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(made("llama") / "base")
    return model, dts.Adapter.load(made("llama") / "adapter")


def test_the_least_recently_used_makes_room_and_memory_is_given_back(llama):
    model, adapter = llama
    tasks = Tasks(linear_places(model), lambda name: name, 2)
    tasks.load(7, adapter)
    once = tasks.nbytes
    assert 0 < once <= 1.1 * adapter.nbytes
    tasks.load(8, adapter)
    tasks.touch(7)
    tasks.load(9, adapter, keep={9})
    assert tasks.numbers == {7, 9} and {tasks.slot(7), tasks.slot(9)} == {0, 1} and tasks.slot(0) == -1
    with pytest.raises(ValueError, match="all 2 tasks are in use or pinned"):
        tasks.load(10, adapter, keep={7, 9, 10})
    tasks.pin(7)
    tasks.pin(9)
    with pytest.raises(ValueError, match="--max-cpu-loras"):
        tasks.reserve(10)
    assert tasks.remove(7) and not tasks.remove(7)
    tasks.clear()
    assert tasks.nbytes == 0 and tasks.numbers == set()


def test_everything_without_a_place_is_named_and_nothing_is_changed(llama):
    model, adapter = llama
    places = linear_places(model)
    del places["model.norm.weight"]
    wide = places["lm_head.weight"]
    places["lm_head.weight"] = Place(wide.delta, "weight", (61, 32), 0, range(61), range(32))
    tasks = Tasks(places, lambda name: name, 2)
    with pytest.raises(ValueError) as error:
        tasks.load(1, adapter)
    assert "model.norm.weight [32]: the model has no such parameter" in str(error.value)
    assert "lm_head.weight: the adapter is for [60, 32], the model has [61, 32]" in str(error.value)
    assert tasks.numbers == set() and tasks.nbytes == 0


def test_one_tensor_of_the_model_that_the_fine_tune_has_twice_is_refused(llama):
    model, adapter = llama
    places = linear_places(model)
    places["lm_head.weight"] = places["model.embed_tokens.weight"]
    with pytest.raises(ValueError, match="which the fine-tune has apart"):
        Tasks(places, lambda name: name, 1).load(1, adapter)


def test_a_place_says_which_adapter_was_meant(made, tmp_path):  # noqa: F811
    adapter = dts.Adapter.load(made("llama") / "adapter")
    adapter.save(tmp_path / "task")
    catalogue = Catalogue(tmp_path, "base", None)
    named = place_of(catalogue.folder("task"), catalogue.digest_of("task"))
    assert load_place(named).nbytes == load_place(str(tmp_path / "task")).nbytes == adapter.nbytes
    adapter.truncate(budget=0.15).save(tmp_path / "task", overwrite=True)
    with pytest.raises(dts.AdapterError, match="holds another adapter"):
        load_place(named)
