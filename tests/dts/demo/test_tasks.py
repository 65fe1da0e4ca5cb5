"""The tasks whose data arrive with pip, and folders of TSV files."""

import gzip
import json
from collections import Counter

import pytest

from dts.demo import tasks


@pytest.fixture(scope="module", params=list(tasks.DEMO_TASKS))
def task(request):
    try:
        return tasks.DEMO_TASKS[request.param]()
    except tasks.MissingData as absent:
        pytest.skip(str(absent))


def test_splits_share_no_text_and_hold_every_class(task):
    train, test = task.split("train"), task.split("test")
    assert not {text.lower() for text in train[0]} & {text.lower() for text in test[0]}
    for texts, labels in (train, test):
        assert len(texts) == len(labels) == len(set(texts))
        assert set(labels) == set(range(len(task.class_names)))
    assert len(train[0]) >= 1000 and len(test[0]) >= 300
    assert len(set(task.class_names)) == len(task.class_names)


def test_no_class_dominates(task):
    counts = Counter(task.split("test")[1])
    assert max(counts.values()) <= 2 * min(counts.values())


def test_a_task_is_the_same_every_time_and_says_where_it_is_from(task):
    again = tasks.DEMO_TASKS[task.name]()
    assert again == task and again.digest == task.digest
    assert task.source and task.licence


def test_the_demo_has_at_least_three_tasks():
    assert len(tasks.demo_tasks()) >= 3


def test_a_group_never_spans_both_splits():
    samples = [(f"group {i // 10}", f"text {i}", i // 10 % 2) for i in range(600)]
    task = tasks._task("t", "?", ["a", "b"], samples, train=1000, test=1000, source="", licence="")
    groups = {split: {int(text.split()[1]) // 10 for text in task.split(split)[0]} for split in ("train", "test")}
    assert not groups["train"] & groups["test"]
    assert sum(map(len, groups.values())) == 60


def test_texts_of_two_classes_and_repetitions_are_dropped():
    samples = [("g", "same", 0), ("h", "Same", 1)] + [(str(i), f"text {i % 20}", i % 2) for i in range(200)]
    task = tasks._task("t", "?", ["a", "b"], samples, train=1000, test=1000, source="", licence="")
    assert sorted(task.texts) == sorted(f"text {i}" for i in range(20))


@pytest.fixture
def folder(tmp_path):
    info = {
        "colours": {"classes": ["red", "blue"], "repo": "here", "licence": "none"},
        "pairs": {"classes": ["no", "yes"], "pair": True},
    }
    (tmp_path / "info.json").write_text(json.dumps(info))
    for name, lines in {
        "colours": ["train\t0\tblood", "test\t1\tthe sky", "train\t1\tsea"],
        "pairs": ["train\t1\ta cat\tan animal", "test\t0\ta cat\ta stone"],
    }.items():
        with gzip.open(tmp_path / f"{name}.tsv.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    return tmp_path


def test_folder_tasks(folder):
    colours, pairs = tasks.folder_tasks(folder)
    assert colours.split("train") == (["blood", "sea"], [0, 1])
    assert colours.class_names == ["red", "blue"] and colours.licence == "none"
    assert pairs.split("test") == ([("a cat", "a stone")], [0])
    assert [task.name for task in tasks.folder_tasks(folder, ["pairs"])] == ["pairs"]


def test_all_unknown_names_are_reported_at_once(folder):
    with pytest.raises(tasks.MissingData, match="'?shapes, sizes; it has colours, pairs"):
        tasks.folder_tasks(folder, ["shapes", "colours", "sizes"])
    with pytest.raises(tasks.MissingData, match="no info.json"):
        tasks.folder_tasks(folder / "nothing")


def test_folder_tasks_reads_the_shared_sets_as_their_own_reader_does(shared):
    import importlib.util

    spec = importlib.util.spec_from_file_location("load", shared / "data" / "load.py")
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    for task in tasks.folder_tasks(shared / "data" / "text", ["mrpc", "trec6"]):
        for split in ("train", "test"):
            texts, labels = load.load_text(shared / "data" / "text" / f"{task.name}.tsv.gz", split)
            assert task.split(split) == (texts, labels.tolist())


def test_digest_depends_on_every_field_of_the_data(folder):
    import dataclasses

    task = tasks.folder_tasks(folder, ["colours"])[0]
    changed = [
        dataclasses.replace(task, texts=[*task.texts[:-1], "lake"]),
        dataclasses.replace(task, labels=[1, 1, 1]),
        dataclasses.replace(task, splits=["test", "test", "train"]),
        dataclasses.replace(task, class_names=["red", "green"]),
    ]
    assert len({task.digest, *(other.digest for other in changed)}) == 5
