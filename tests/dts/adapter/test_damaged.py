"""Adapter folders from elsewhere: altered configurations, files that are missing or would land outside."""

import json
import shutil
from pathlib import Path

import pytest

import dts
from dts.adapter import AdapterError, compress, write_checkpoint
from tests.fuzz.form import opened

GOLDEN = Path(__file__).parent / "golden"
IN_TABLE = ("tensors", "dropped")


@pytest.fixture(scope="module")
def made(bert_folders, tmp_path_factory):
    """(base, an adapter with a tokenizer file of its own)."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(bert_folders[1], folder / "trec")
    (folder / "trec/tokenizer_config.json").write_text('{"a": 1}')
    compress(bert_folders[0], folder / "trec", out=folder / "a", nbytes=32_000)
    return bert_folders[0], folder / "a"


@pytest.fixture
def base(made):
    return made[0]


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "in" / "a")


def alter(folder, **changes) -> None:
    """Sets values of the configuration, ``base__name`` being one of a section."""
    inner = opened(folder)
    for key, value in changes.items():
        *sections, last = key.split("__")
        where = inner.config
        for section in sections:
            where = where[section]
        where[last] = value
    inner.write(folder)


def alter_text(folder, **changes) -> None:
    """Sets values of the configuration as it lies on disk."""
    path = folder / "dts_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def old(tmp_path):
    """A folder whose rows stand in its configuration."""
    return shutil.copytree(GOLDEN / "4-sketch", tmp_path / "in" / "old")


@pytest.mark.parametrize(
    "name", ["../payload.sh", "/etc/payload", "a/b", "..\\payload", "C:payload", "..", ".", "", "a\0b"]
)
def test_a_file_that_would_land_outside_is_refused(folder, name):
    (folder.parent / "payload.sh").write_text("echo")
    alter(folder, files={name: 5})
    with pytest.raises(AdapterError, match="not the name of a file in the adapter's folder"):
        dts.Adapter.load(folder)


def test_a_name_set_later_is_not_copied_outside_either(base, folder, tmp_path):
    (folder.parent / "payload.sh").write_text("echo")
    adapter = dts.Adapter.load(folder)
    adapter.files["../payload.sh"] = folder / "../payload.sh"
    out = tmp_path / "out"
    for write in (lambda: adapter.save(out / "a"), lambda: write_checkpoint(base, adapter, out / "full")):
        with pytest.raises(AdapterError, match="payload"):
            write()
    assert not out.exists()


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("{}")])
def test_a_file_missing_or_altered_is_told_and_nothing_is_written(base, folder, tmp_path, damage):
    damage(folder / "tokenizer_config.json")
    with pytest.raises(AdapterError, match="tokenizer_config.json"):
        dts.Adapter.load(folder)
    adapter = dts.Adapter.load(folder, verify=False)
    problems = adapter.verify(base).problems
    assert len(problems) == 1 and "tokenizer_config.json" in problems[0]
    for write in (lambda: adapter.save(tmp_path / "copy"), lambda: write_checkpoint(base, adapter, tmp_path / "full")):
        with pytest.raises(AdapterError, match="tokenizer_config.json"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base", None),
        ("task", 7),
        ("files", None),
        ("files", {"tokenizer_config.json": "x"}),
        ("tensors", []),
        ("tensors", {"x": None}),
        ("method", None),
        ("kind", "x"),
        ("bytes", "x"),
        ("bytes", True),
        ("amr", "x"),
        ("dropped", {"x": "y"}),
        ("model_config", []),
        ("task__name", None),
        ("task__class_names", "abc"),
        ("base__parameters", "many"),
        ("base__dtype", "nn"),
        ("finetuned__dtype", "float33"),
        ("finetuned__renamed", []),
        ("finetuned__base_only", {}),
        ("finetuned__dtypes", {"x": 3}),
        ("squared_error", "x"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_its_name(old, folder, key, value):
    for altered in (old, folder)[: 1 if key in IN_TABLE else 2]:
        alter(altered, **{key: value})
        with pytest.raises(AdapterError, match="is damaged: ") as error:
            dts.Adapter.load(altered)
        assert key.replace("__", ".").rpartition(".")[2] in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("names", None),
        ("names", ["x", 0]),
        ("names", [1, "x"]),
        ("names", [0]),
        ("names", [0, "x", -1, "y"]),
        ("names", [0, 5]),
        ("names", []),
        ("rows", None),
        ("rows", [1]),
        ("rows", [{"kind": 2}]),
        ("rows", []),
        ("tensors", {}),
        ("dropped", {}),
    ],
)
def test_a_table_of_other_names_and_rows_is_refused(folder, key, value):
    alter_text(folder, **{key: value})
    with pytest.raises(AdapterError, match="is damaged: "):
        dts.Adapter.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", None),
        ("shape", ["x"]),
        ("kind", 3),
        ("kind", "other"),
        ("sha256", None),
        ("norm", "x"),
        ("bytes", -1),
        ("dtype", "float33"),
        ("parts", None),
        ("parts", [{"kind": "residual", "rank": "x"}]),
        ("task_only", "yes"),
    ],
)
def test_a_row_that_cannot_be_is_refused_by_its_tensor(old, folder, key, value):
    for altered in (old, folder)[: 1 if key == "bytes" else 2]:  # which follow from the tensors in a table
        rows = opened(altered).config["tensors"]
        name = next(name for name, row in rows.items() if row["kind"] == "factors")
        alter(altered, tensors=rows | {name: rows[name] | {key: value}})
        with pytest.raises(AdapterError, match=name):
            dts.Adapter.load(altered)


def test_all_that_is_wrong_is_told_at_once(folder):
    alter(folder, kind="x", base__name=3, files={"../a": "b"})
    with pytest.raises(AdapterError) as error:
        dts.Adapter.load(folder)
    assert all(part in str(error.value) for part in ("kind is 'x'", "base.name is 3", "'../a'", "is 'b'"))
