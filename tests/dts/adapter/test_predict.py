"""The error that a dry run predicts, against the adapter's that is then made."""

import pytest

import dts


@pytest.mark.parametrize("how", [{"budget": 0.06}, {"rank_fraction": 0.2}, {"target_error": 0.2}])
def test_overall_and_by_tensor(bert_folders, how):
    base, finetuned = bert_folders
    dry = dts.compress(base, finetuned, dry_run=True, **how)
    predicted = dry.prediction
    assert predicted.squared_error == pytest.approx(dry.config["squared_error"], rel=1e-4)
    adapter = dts.compress(base, finetuned, **how)
    assert adapter.prediction is None
    measured = adapter.config["squared_error"]
    assert predicted.squared_error == pytest.approx(measured, rel=0.15, abs=0.005)
    assert predicted.lower <= measured <= predicted.upper
    same = 0
    for tensor in predicted.tensors:
        entry = adapter.entries.get(tensor.name)
        if entry is None or (entry.rank,) != tensor.ranks:
            continue  # what the codec really did may move a few ranks
        same += 1
        assert tensor.shape == entry.shape and tensor.norm == pytest.approx(entry.norm)
        assert tensor.lower <= entry.squared_error <= tensor.upper
    assert same > len(predicted.tensors) / 2


def test_stacks_of_experts_and_tensors_left_out():
    import torch

    torch.manual_seed(0)
    base = {"mlp.experts": torch.randn(3, 48, 64), "w": torch.randn(64, 64), "bias": torch.randn(64)}
    tuned = {name: value + 0.1 * torch.randn_like(value) for name, value in base.items()}
    tuned["mlp.experts"][1] = base["mlp.experts"][1]
    tuned["w"] = base["w"] + 1e-4 * torch.randn(64, 64)
    predicted = dts.compress(base, tuned, budget=0.1, dry_run=True).prediction
    experts, small = predicted.tensors
    assert experts.ranks[1] == 0 < experts.ranks[0] and small.ranks == (0,)
    assert small.squared_error == small.lower == small.upper == 1
    assert 0 < predicted.lower < predicted.squared_error < predicted.upper < 1
