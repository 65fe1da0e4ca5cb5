"""sentence-transformers on a `DTSModel`: embeddings and scores of each text's task, and what is saved."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
library = pytest.importorskip("sentence_transformers")

from dts.integrations.sentences import with_tasks  # noqa: E402
from tests.dts.integrations.test_pipelines import SAME, TEXTS, tokenizer  # noqa: E402
from tests.dts.nn.classifiers import TEXT, family  # noqa: E402

PAIRS = [(text, TEXTS[0]) for text in TEXTS]


def made(folder, architecture, classes, load):
    """(each task's encoder, one on a DTSModel)"""
    models = family(folder, architecture, "BertConfig", TEXT, classes)
    dense = {}
    for task, model in models.dense.items():
        out = folder / f"encoder {task}"
        model.save_pretrained(out)
        tokenizer().save_pretrained(out)
        dense[task] = load(str(out))
    return dense, models.model()


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    load = lambda path: library.SentenceTransformer(path, device="cpu")  # noqa: E731
    dense, model = made(tmp_path_factory.mktemp("encoders"), "BertModel", SAME, load)
    ours = copy.deepcopy(dense[None])
    ours[0].model = model
    return dense, ours, model


def test_the_task_that_is_set_and_saved(encoders, tmp_path):
    dense, ours, model = encoders
    for task in ("a", "b", None):
        model.set_task(task)
        np.testing.assert_allclose(ours.encode(TEXTS), dense[task].encode(TEXTS), atol=1e-4)
    model.set_task("a")
    ours.save(str(tmp_path / "out"))
    again = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), dense["a"].encode(TEXTS), atol=1e-4)
    model.set_task(None)


@pytest.mark.parametrize("options", [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}], ids=str)
@pytest.mark.parametrize("method", ["encode", "encode_query"])
def test_a_task_a_text(encoders, method, options):
    dense, ours, model = encoders
    model.set_task("b")
    routed = with_tasks(ours)
    tasks = ["b", "a", None, "a"]
    found = getattr(routed, method)(TEXTS, tasks=tasks, **options)
    one = [getattr(dense[task], method)([text], **options)[0] for task, text in zip(tasks, TEXTS)]
    assert type(found) is type(getattr(dense[None], method)(TEXTS, **options)) and len(found) == 4
    for a, b in zip(found, one):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-4)
    alone = getattr(routed, method)(TEXTS[0], tasks="a", **options)
    np.testing.assert_allclose(
        np.asarray(alone), np.asarray(getattr(dense["a"], method)(TEXTS[0], **options)), atol=1e-4
    )
    np.testing.assert_allclose(
        np.asarray(routed.encode(TEXTS)), np.asarray(dense["b"].encode(TEXTS)), atol=1e-4
    )  # what is set
    assert isinstance(routed, library.SentenceTransformer) and routed[0].model is model
    model.set_task(None)


def test_tasks_that_do_not_fit_are_refused(encoders):
    dense, ours, _ = encoders
    routed = with_tasks(ours)
    with pytest.raises(ValueError, match="tasks has 1 items, one an input, but there are 4 inputs"):
        routed.encode(TEXTS, tasks=["a"])
    with pytest.raises(ValueError, match="tasks has 2 items, one an input, but there are 1 inputs"):
        routed.encode("ab", tasks=["a", "b"])
    with pytest.raises(ValueError, match="no task 'none'"):
        routed.encode(TEXTS, tasks="none")
    with pytest.raises(ValueError, match="told each input's task"):
        routed.encode(TEXTS, tasks="auto")
    with pytest.raises(TypeError, match="whose transformer is a DTSModel"):
        with_tasks(dense["a"])


def test_cross_encoders(tmp_path):
    load = lambda path: library.CrossEncoder(path, device="cpu")  # noqa: E731
    classes = {"rank": (["score"], None), "three": (["x", "y", "z"], None)}
    dense, model = made(tmp_path, "BertForSequenceClassification", classes, load)
    ours = copy.deepcopy(dense["rank"])
    ours[0].model = model
    for task in classes:
        model.set_task(task)
        raw = dict(activation_fn=torch.nn.Identity())
        np.testing.assert_allclose(ours.predict(PAIRS, **raw), dense[task].predict(PAIRS, **raw), atol=1e-4)
        assert ours.config.num_labels == dense[task].config.num_labels
    found = with_tasks(ours).predict(PAIRS, tasks="rank", activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(found, dense["rank"].predict(PAIRS, activation_fn=torch.nn.Identity()), atol=1e-4)
    mixed = with_tasks(ours).predict(PAIRS[:2], tasks=["three", "rank"], **raw)
    np.testing.assert_allclose(mixed[0], dense["three"].predict(PAIRS[:1], **raw)[0], atol=1e-4)
    assert mixed[0].shape == (3,) and float(mixed[1]) == pytest.approx(
        float(dense["rank"].predict(PAIRS[1], **raw)), abs=1e-4
    )
