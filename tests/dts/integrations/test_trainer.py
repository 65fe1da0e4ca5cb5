"""transformers' Trainer on a `DTSModel`: evaluation and prediction of the task that is set, as of its dense model."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from dts.nn import DTSModel  # noqa: E402
from tests.dts.nn.classifiers import CLASSES, TEXT, family  # noqa: E402


class Rows(Dataset):
    """Ids of several lengths, labels of a task, and columns that no model takes."""

    def __init__(self, task, count=10, name="labels"):
        generator = torch.Generator().manual_seed(4)
        classes, problem = CLASSES[task]
        self.rows = []
        for i in range(count):
            ids = torch.randint(3, 50, (3 + i % 4,), generator=generator).tolist()
            label = torch.randint(0, max(len(classes), 2), (1,), generator=generator).item()
            if problem == "multi_label_classification":
                label = torch.randint(0, 2, (3,), generator=generator).float().tolist()
            self.rows.append({"input_ids": ids, name: float(label) if problem == "regression" else label, "text": "x"})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return dict(self.rows[i])


def collate(rows):
    """Pads; labels may be called so or label_ids."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    return batch | {
        key: torch.tensor([row[key] for row in rows]) for key in rows[0] if key not in ("input_ids", "text")
    }


def metrics(found):
    logits, labels = found
    assert np.isfinite(logits).all() and len(logits) == len(labels)
    return {"width": logits.shape[1], "sum": float(np.abs(logits).sum())}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return family(tmp_path_factory.mktemp("bert"))


def trainer(model, folder, **options):
    metric = options.pop("compute_metrics", metrics)
    made = options.pop("data_collator", collate)
    arguments = transformers.TrainingArguments(
        str(folder), per_device_eval_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True, **options
    )
    return transformers.Trainer(model, arguments, data_collator=made, compute_metrics=metric)


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if not any(word in key for word in ("runtime", "per_second", "time")):
            assert found[key] == pytest.approx(value, abs=1e-3), key


@pytest.mark.parametrize("task", CLASSES)
def test_evaluation_and_prediction_of_the_task_that_is_set(bert, task, tmp_path):
    model, rows = bert.model(), Rows(task)
    ours, theirs = trainer(model, tmp_path), trainer(copy.deepcopy(bert.dense[task]), tmp_path)
    for other in (*CLASSES, task):  # one trainer, whatever is set
        model.set_task(other)
        if other == task:
            same(ours.evaluate(rows), theirs.evaluate(rows))
    found, expected = ours.predict(rows), theirs.predict(rows)
    assert found.predictions.shape == (10, len(CLASSES[task][0]))
    np.testing.assert_allclose(found.predictions, expected.predictions, atol=1e-4)
    np.testing.assert_array_equal(found.label_ids, expected.label_ids)
    same(found.metrics, expected.metrics)


@pytest.mark.parametrize(
    "options",
    [
        dict(dataloader_num_workers=2),
        dict(prediction_loss_only=True),
        dict(remove_unused_columns=False),
        dict(label_names=["labels"]),
        dict(bf16_full_eval=True),
        dict(label_smoothing_factor=0.1),
        dict(include_for_metrics=["loss"]),
        dict(eval_accumulation_steps=1, batch_eval_metrics=False),
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_evaluation(bert, options, tmp_path):
    if "include_for_metrics" in options:
        options = options | {"compute_metrics": lambda found: {"mean": float(found.losses.mean())}}
    if "prediction_loss_only" in options:
        options = options | {"compute_metrics": None}
    if "bf16_full_eval" in options:
        options = options | {"compute_metrics": lambda found: {"width": found.predictions.shape[1]}}
    model, rows = bert.model(), Rows("topic")
    model.set_task("topic")
    found = trainer(model, tmp_path, **options).evaluate(rows)
    expected = trainer(copy.deepcopy(bert.dense["topic"]), tmp_path, **options).evaluate(rows)
    assert "eval_loss" in found
    if "bf16_full_eval" not in options:
        same(found, expected)
    else:
        assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=0.02)


def test_library_collators(bert, tmp_path):
    """The default one, of rows of one length, and labels by their other name."""
    rows = Rows("topic", name="label")
    for row in rows.rows:
        row["input_ids"] = (row["input_ids"] + [5] * 6)[:6]
    model = bert.model()
    model.set_task("topic")
    default = transformers.default_data_collator
    found = trainer(model, tmp_path, data_collator=default).evaluate(rows)
    same(found, trainer(copy.deepcopy(bert.dense["topic"]), tmp_path, data_collator=default).evaluate(rows))


def test_rows_without_labels_are_predicted(bert, tmp_path):
    rows = Rows("topic")
    for row in rows.rows:
        del row["labels"]
    model = bert.model()
    model.set_task("topic")
    found = trainer(model, tmp_path).predict(rows)
    assert found.predictions.shape == (10, 5) and found.label_ids is None


def test_training_is_refused_before_anything_moves(bert, tmp_path):
    model, rows = bert.model(), Rows("topic")
    model.set_task("topic")
    before = copy.deepcopy(model.state_dict())
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    train = transformers.Trainer(model, arguments, data_collator=collate, train_dataset=rows)
    with pytest.raises(RuntimeError, match="the optimizer would move weights of the base.*merge_and_unload"):
        train.train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    plain = model.merge_and_unload("topic")
    transformers.Trainer(plain, arguments, data_collator=collate, train_dataset=rows).train()
    assert not torch.equal(plain.classifier.bias, bert.dense["topic"].classifier.bias)


def test_what_no_task_changes_is_trained(bert, tmp_path):
    """A module of one's own in the model, over a base that is left alone."""
    model, rows = bert.model(), Rows("topic")
    model.set_task("topic")
    model.requires_grad_(False)
    model.model.bert.pooler.add_module("own", torch.nn.Linear(32, 32))
    model.model.bert.pooler.register_forward_hook(lambda module, _, output: module.own(output))
    before = model.model.bert.pooler.own.weight.detach().clone()
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    transformers.Trainer(model, arguments, data_collator=collate, train_dataset=rows).train()
    assert not torch.equal(model.model.bert.pooler.own.weight, before)


def test_a_trainer_writes_the_task_that_is_set(bert, tmp_path):
    model = bert.model()
    model.set_task("topic")
    trainer(model, tmp_path / "run").save_model(str(tmp_path / "out"))
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    ids = torch.randint(3, 50, (2, 5))
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert again.config.id2label[4] == "war" and isinstance(model, DTSModel)


def test_tokens_and_language_models_are_evaluated(tmp_path):
    made = family(tmp_path, "BertForTokenClassification", sizes=TEXT, classes={"ner": (["O", "B", "I"], None)})
    model = made.model()
    model.set_task("ner")

    class Tokens(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            ids = torch.arange(3 + i, 9 + i)
            return {"input_ids": ids, "labels": ids % 3, "attention_mask": torch.ones(6, dtype=torch.long)}

    one = lambda m: trainer(m, tmp_path / "run", data_collator=None, compute_metrics=None)  # noqa: E731
    same(one(model).evaluate(Tokens()), one(copy.deepcopy(made.dense["ner"])).evaluate(Tokens()))
    assert one(model).predict(Tokens()).predictions.shape == (6, 6, 3)
