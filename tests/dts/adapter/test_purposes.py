"""What the bytes of a folder are for: they add up, and few hold no weights."""

from pathlib import Path

import pytest
import torch

import dts
from dts.adapter.purposes import CONTENT, purposes

transformers = pytest.importorskip("transformers")
GOLDEN = Path(__file__).parent / "golden"
MOST = 6 * 1024  # bytes of text of a six-layer BERT


def text_of(found: dict[str, int]) -> int:
    return sum(count for purpose, count in found.items() if purpose not in (*CONTENT, "tokenizer files"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and a fine-tune with the tensors and names of MiniLM-L6, all trained, in a third of its width."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=600,
        hidden_size=144,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=576,
        max_position_embeddings=130,
        id2label=dict(enumerate(("business", "entertainment", "politics", "sports", "tech"))),
    )
    base, tuned = transformers.BertModel(config), transformers.BertForSequenceClassification(config)
    tuned.bert.load_state_dict(base.state_dict())
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.001 * torch.randn(parameter.shape)
    base.save_pretrained(folder / "base")
    tuned.save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


@pytest.mark.parametrize(("method", "budget"), [("residual", 0.05), ("sketch", 0.05), ("residual", 0.01)])
def test_all_tensors_of_a_six_layer_bert_take_little_text(folders, tmp_path, method, budget):
    adapter = dts.compress(*folders, tmp_path / "a", method=method, budget=budget)
    assert len(adapter.entries) + len(adapter.config["dropped"]) == 103 + 2  # the head's
    on_disk = {path.name: path.stat().st_size for path in (tmp_path / "a").iterdir()}
    loaded = purposes(dts.Adapter.load(tmp_path / "a"))
    assert loaded == purposes(adapter) and sum(loaded.values()) == sum(on_disk.values()) == adapter.nbytes
    assert loaded["card"] == on_disk["README.md"] and loaded["vectors"] > 0 and loaded["heads"] > 0
    payload = sum(loaded.get(purpose, 0) for purpose in CONTENT)
    assert payload == sum(row["bytes"] for row in adapter.config["tensors"].values())
    assert text_of(loaded) <= MOST, loaded


@pytest.mark.parametrize("folder", sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()))
def test_they_add_up_in_folders_of_every_format(folder):
    adapter = dts.Adapter.load(GOLDEN / folder)
    assert sum(purposes(adapter).values()) == sum(path.stat().st_size for path in (GOLDEN / folder).iterdir())
