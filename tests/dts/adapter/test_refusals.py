"""What cannot be compressed is said at once, and leaves nothing behind."""

import pytest
import torch

import dts
from dts.adapter import BudgetError
from dts.codec import Unencodable

BASE = {
    "a.weight": torch.randn(40, 24, generator=torch.Generator().manual_seed(0)),
    "a.bias": torch.zeros(40),
    "embed.weight": torch.ones(30, 24),
}


def tuned(**changes):
    return {name: value + 0.1 for name, value in BASE.items()} | changes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a.bias", torch.tensor([float("nan")] * 40)),
        ("head.weight", torch.tensor([[1.0, float("nan")]])),
        ("embed.weight", torch.cat([torch.ones(30, 24), torch.full((2, 24), float("nan"))])),
        ("a.weight", torch.full((40, 24), float("inf"))),
    ],
)
def test_numbers_that_are_none_are_refused_wherever_they_are(tmp_path, name, value):
    with pytest.raises(Unencodable, match=name):
        dts.compress(BASE, tuned(**{name: value}), out=tmp_path / "a", rank_fraction=0.5)
    assert not list(tmp_path.iterdir())


def test_masks_may_be_infinite():
    mask = torch.full((5,), -torch.inf)
    adapter = dts.compress(BASE, tuned(mask=mask), rank_fraction=0.5)
    assert torch.equal(adapter.entries["mask"].tensor, mask)


def test_a_budget_that_cannot_be_leaves_nothing_behind(tmp_path):
    with pytest.raises(BudgetError, match="smallest"):
        dts.compress(BASE, tuned(), out=tmp_path / "a", nbytes=50)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "size",
    [
        {"budget": float("inf")},
        {"budget": float("nan")},
        {"budget": "1%"},
        {"nbytes": -3},
        {"rank_fraction": 0},
        {"target_error": 1.0},
        {"target_error": 2},
    ],
)
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match=next(iter(size))):
        dts.compress(BASE, tuned(), **size)


def test_the_card_s_lines_load_a_fine_tune_with_a_head(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    base = transformers.BertModel(transformers.BertConfig(**small))
    base.save_pretrained(tmp_path / "base")
    fine = transformers.BertForSequenceClassification(transformers.BertConfig(**small, num_labels=3))
    fine.bert.load_state_dict(base.state_dict())
    fine.save_pretrained(tmp_path / "fine")
    dts.compress(tmp_path / "base", tmp_path / "fine", tmp_path / "adapter", rank_fraction=0.5)
    lines = (tmp_path / "adapter" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    lines = lines.replace("path/to/this/folder", str(tmp_path / "adapter"))
    names = {}
    exec(lines.replace('from_pretrained("path/to/base"', f'from_pretrained("{tmp_path / "base"}"'), names)
    assert names["model"](torch.tensor([[1, 2]])).logits.shape == (1, 3)


def test_a_cut_off_file_of_an_interrupted_run_is_made_again(tmp_path):
    names = ["a/b.weight", "a_b.weight", "w" * 240 + ".weight"]
    base = {name: torch.randn(40, 24) for name in names}
    fine = {name: value + 0.1 * torch.randn(40, 24) for name, value in base.items()}

    def interrupt(done, total, name):
        if done > 0.9 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dts.compress(base, fine, out=tmp_path / "a", nbytes=9000, progress=interrupt)
    kept = list((tmp_path / ".a.partial").glob("*.safetensors"))
    assert len({file.name for file in kept if file.name.startswith("spectrum")}) == len(names)
    for file in kept:
        file.write_bytes(file.read_bytes()[:7])
    adapter = dts.compress(base, fine, out=tmp_path / "a", nbytes=9000, resume=True)
    assert adapter.verify(base, fine).problems == [] and sorted(adapter.entries) == sorted(names)
