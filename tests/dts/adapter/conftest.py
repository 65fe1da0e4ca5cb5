"""Tiny models from transformers' own configurations, and fine-tunes of them with a decaying spectrum."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")


def moved(model, scale=0.02, seed=0, skip=()):
    """A copy whose matrices moved by a low-rank delta with noise, and whose vectors moved a little."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(part in name for part in skip):
                continue
            if p.dim() < 2:
                p += 0.1 * scale * draw(*p.shape)
            else:
                rows, columns = p.shape[-2:] if p.dim() == 3 else (p.shape[0], p.numel() // p.shape[0])
                batch = p.shape[:1] if p.dim() == 3 else ()
                low = draw(*batch, rows, 4) @ draw(*batch, 4, columns) / 4
                p += scale * (low + 0.1 * draw(*batch, rows, columns)).reshape(p.shape)
    return model


@pytest.fixture(scope="session")
def finetune():
    return moved


@pytest.fixture(scope="session")
def bert():
    """(BertModel, a classifier fine-tuned from it)."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=500,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        num_labels=3,
        id2label={0: "abbreviation", 1: "entity", 2: "human"},
    )
    base = transformers.BertModel(config)
    model = transformers.BertForSequenceClassification(config)
    model.bert.load_state_dict(base.state_dict())
    model = moved(model, skip=("word_embeddings",))
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[::7] += 0.01
    return base.eval(), model.eval()


@pytest.fixture(scope="session")
def bert_folders(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    for name, model in zip(("base", "trec"), bert):
        model.save_pretrained(folder / name)
    return folder / "base", folder / "trec"
