"""Models on several processes answer as those of one process, and send nothing that the base does not send.

Tensor parallel: each has its part of every task.  FSDP2: parameters are put together for each forward; tasks are whole.
"""

import pytest
import torch

import dts
from tests.dts.nn.parallel import cases
from tests.dts.nn.parallel.models import LLAMA


def equal(far: dict[str, float]) -> None:
    assert len(far) > 1 and all(distance < cases.CLOSE for distance in far.values()), far


def test_a_llama_of_transformers_own_plan(two, folder):
    for found in two(cases.llama, folder):
        equal(found["far"])
        assert found["sent"] == [found["base"]] * 4 and sum(found["base"].values()) == 6
        status = found["status"]
        assert not (status["grouped"] or status["unused"] or status["once_a_task"])
        assert found["words"]
        whole, part = found["nbytes"]
        assert part < 0.76 * whole  # of a matrix of components one side is in both: (m / 2 + n) / (m + n)
        equal(found["again"])
        assert "merge_and_unload() needs whole weights" in found["merged"]
        assert "needs whole weights" in found["saved"]
        equal(found["still"])
        assert found["left"] == 0


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_model_of_torchs_styles(two, kind):
    for found in two(cases.styles, kind):
        equal(found["far"])
        assert found["sent"] == [found["base"]] * 4 and found["base"]
        assert not found["grouped"]
        assert found["gradients"] < 1e-4


def test_rows_choose_their_tasks_as_in_one_process(two, folder, tmp_path):
    tuned = cases.random_llama()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    dts.compress(folder / "base", tuned, out=tmp_path / "other", budget=0.2)
    for one, planned, styled in two(cases.chosen, folder, tmp_path / "other"):
        assert one == planned == styled


def test_near_duplicates_are_one_choice_for_all_processes_of_a_split_model(two, folder):
    first, second = two(cases.near_duplicates, folder)
    assert first["own"] != second["own"] and first["split"] == second["split"] == first["own"]
    for found in (first, second):
        auto, named = found["answers"]
        assert torch.equal(auto, named)
    assert first["apart"] != second["apart"]  # rows of its own, and its own choice


def test_ids_that_do_not_divide_in_a_table_that_a_head_is_tied_to(two):
    for found in two(cases.uneven):
        equal(found["far"])
        assert found["beyond"] == "IndexError: model.embed_tokens: ids must be 0 to 60"
        whole, part = found["nbytes"]
        assert part < whole


def test_parts_of_sequences_between_the_linear_layers(two):
    for found in two(cases.sequences):
        equal(found["far"])


def test_fewer_heads_of_keys_than_processes_are_refused_as_the_base_refuses_them(two, tmp_path):
    import transformers

    sizes = LLAMA | {"num_key_value_heads": 1}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(tmp_path)
    for base, model in two(cases.few_heads, tmp_path):
        assert base == model != "nothing was refused"


REFUSED = {
    "none": "0: 2 processes split 1 rows: one has none",
    "mesh": "blocks.0.up: its parameters lie on a mesh of 2 dimensions (dp, tp)",
    "layer": "0: its parameters ['bias', 'weight'] are split",
    "whole layer": "0: Conv2d runs no tasks where its parameters lie on several processes",
    "quantised": "0: a quantised layer that is split runs no tasks: load the base in floating point",
    "head": "0.weight: the task brings it whole, and it is split: leave this module out of the plan",
}


def test_what_cannot_be_split_is_refused_by_name(two):
    for found in two(cases.refused):
        assert found.keys() == REFUSED.keys()
        for what, words in REFUSED.items():
            assert found[what].startswith("ValueError: the adapter cannot be split") and words in found[what], found[
                what
            ]
        assert "blocks.1.up: its parameters lie" in found["mesh"]  # all of it at once


def test_a_model_is_split_before_its_tasks_are_loaded(two):
    for found in two(cases.late):
        assert "blocks.0.up is split over processes under its tasks: delete_task() them" in found["late"]
        assert found["far"] < cases.CLOSE
        assert "blocks.0.up got an input that is placed as S(1), which is not how its parameters lie" in found["input"]


def test_a_fully_sharded_llama(two, folder):
    for found in two(cases.sharded, folder):
        for when in ("before", "after"):
            equal(found[when])
            equal(found[f"{when} again"])
            assert found[f"{when} sent"] == found["base"] and found["base"]
            assert found[f"{when} words"]
            assert "merge_and_unload() needs whole weights" in found[f"{when} merged"]
        assert found["gradients"] < 1e-4
