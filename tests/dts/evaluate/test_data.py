"""Examples as people have them, and what is said of those that cannot be."""

import importlib.util
import json

import pytest

from dts.evaluate.data import Examples, label_ids, read

CSV = 'text,label\n"good, very",1\nbad,0\n'


def made(tmp_path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text, "utf-8")
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", CSV),
        ("a.tsv", "text\tlabel\ngood, very\t1\nbad\t0\n"),
        ("a.jsonl", '{"text": "good, very", "label": 1}\n\n{"text": "bad", "label": 0}\n'),
        ("a.json", '[{"text": "good, very", "label": "1"}, {"text": "bad", "label": "0"}]'),
    ],
)
def test_every_format_gives_the_same(tmp_path, name, text):
    examples = read(made(tmp_path, name, text))
    assert examples.inputs == ["good, very", "bad"] and examples.columns == {"text": "text", "label": "label"}
    assert label_ids(examples, ["no", "yes"]) == [1, 0] and examples.total == 2 and not examples.made_up


def test_columns_pairs_token_ids_and_plain_texts(tmp_path):
    pairs = made(tmp_path, "pairs.csv", "premise,hypothesis,gold\na,b,yes\nc,d,no\n")
    assert read(pairs).inputs == [("a", "b"), ("c", "d")] and read(pairs).labels is None
    assert read(pairs, text="hypothesis", label="gold").inputs == ["b", "d"]
    assert label_ids(read(pairs, label="gold"), ["no", "yes"]) == [1, 0]
    ids = made(tmp_path, "ids.jsonl", json.dumps({"input_ids": [1, 2, 3], "labels": 1}))
    assert read(ids).inputs == [[1, 2, 3]] and read(ids).labels == [1]
    assert read(made(tmp_path, "a.txt", "one\n\ntwo\n")).inputs == ["one", "two"]
    image = read(made(tmp_path, "i.csv", "image,label\nx.png,0\n"))
    assert image.inputs == [tmp_path / "x.png"]


@pytest.mark.parametrize(
    ("name", "text", "asked", "words"),
    [
        ("a.csv", "a,b\n1,2\n", {}, ["its columns are a, b", "--text a"]),
        ("a.csv", CSV, {"text": "words"}, ["no column words", "text, label"]),
        ("a.csv", CSV, {"label": "truth"}, ["no column truth", "text, label"]),
        ("a.csv", "text,label\n", {}, ["has no rows"]),
        ("a.csv", "", {}, ["first line must name the columns"]),
        ("a.csv", "text,label\na,b,c\n", {}, ["line 2", "3 fields", "quote"]),
        ("a.csv", "text,label\n,1\n", {}, ["row 1", "column text"]),
        ("a.jsonl", '{"text": "a"}\n{"text":\n', {}, ["line 2", "no JSON"]),
        ("a.jsonl", "[1]\n", {}, ["item 1", "no object"]),
        ("a.jsonl", "{}\n", {}, ["has no columns"]),
        ("a.jsonl", "[" * 100_000, {}, ["line 1", "in one another"]),
        ("a.jsonl", '{"text": {"a": 1}}\n', {}, ["row 1 has no text in its column text", "{'a': 1}"]),
        ("a.jsonl", '{"text1": "a", "text2": [1]}\n', {}, ["row 1 has no text in its column text2"]),
        ("a.xlsx", "", {}, ["ends in .xlsx", ".jsonl"]),
    ],
)
def test_every_refusal_names_the_file_what_was_found_and_what_to_do(tmp_path, name, text, asked, words):
    file = made(tmp_path, name, text)
    with pytest.raises(ValueError) as found:
        read(file, **asked)
    assert name in str(found.value) and all(word in str(found.value) for word in words), found.value


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.csv is not there.*--data takes"):
        read(str(tmp_path / "nothing.csv"))
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read(str(tmp_path))
    (tmp_path / "latin.csv").write_bytes(b"text\n\xe9\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        read(str(tmp_path / "latin.csv"))


@pytest.mark.parametrize(("package", "source"), [("pyarrow", "a.parquet"), ("datasets", "some/data")])
def test_a_package_that_is_absent_is_named(tmp_path, monkeypatch, package, source):
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "a.parquet", "")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        read(source)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.jsonl", "a.json"])
def test_an_editors_mark_is_no_letter_of_a_text(tmp_path, name):
    text = {"a.txt": "good\n", "a.jsonl": '{"text": "good"}\n', "a.json": '[{"text": "good"}]'}.get(
        name, "text\ngood\n"
    )
    assert read(made(tmp_path, name, "\ufeff" + text)).inputs == ["good"]


def test_lines_end_at_line_ends_alone(tmp_path):
    strange = "a\u2028b\x0cc\x85d"
    assert read(made(tmp_path, "a.txt", f"{strange}\r\ne\n")).inputs == [strange, "e"]
    assert read(made(tmp_path, "a.jsonl", '{"text": "a\u2028b"}\n{"text": "c\x85"}\n')).inputs == ["a\u2028b", "c\x85"]


def test_a_quote_that_is_not_closed_takes_in_no_lines(tmp_path):
    for text in ('text\n"a\nb\n', 'text\n"a"b\nc\n'):
        with pytest.raises(ValueError, match="a.csv, line .*: close the quotes"):
            read(made(tmp_path, "a.csv", text))
    lines = '"a\t0\nb\t1\n"c\t0\n'  # as GLUE has them: a quote is a letter
    plain = ['"a', "b", '"c']
    assert read(made(tmp_path, "a.tsv", f"text\tlabel\n{lines}")).inputs == plain
    assert read(made(tmp_path, "a.tsv", 'text\tlabel\n"a\t0\nb"\t1\n')).inputs == ['"a', 'b"']
    assert read(made(tmp_path, "a.tsv", 'text\tlabel\n"a ""x""\nb"\t1\n')).inputs == ['a "x"\nb']  # and as a table's
    with pytest.raises(ValueError, match="each once"):
        read(made(tmp_path, "a.tsv", "text\ttext\na\tb\n"))


def test_a_text_may_be_long(tmp_path):
    assert read(made(tmp_path, "a.csv", f"text\n{'long ' * 40_000}\n")).inputs == ["long " * 40_000]


def test_a_column_that_the_first_row_lacks_is_one(tmp_path):
    with pytest.raises(ValueError, match="row 1 has nothing in its column label"):
        read(made(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": "b", "label": 1}\n'))


def test_a_mask_and_types_beside_token_ids_are_heeded(tmp_path):
    rows = [{"input_ids": [7, 8, 0], "attention_mask": [1, 1, 0], "label": 0}]
    file = made(tmp_path, "a.jsonl", json.dumps(rows[0]))
    assert read(file).inputs == [[7, 8]]
    file = made(tmp_path, "a.jsonl", json.dumps(rows[0] | {"token_type_ids": [0, 1, 0]}))
    assert read(file).inputs == [{"input_ids": [7, 8], "token_type_ids": [0, 1]}]
    for odd, says in (
        ({"attention_mask": [1]}, "not as many attention_mask"),
        ({"attention_mask": [1, 2, 0]}, "0 and 1"),
    ):
        with pytest.raises(ValueError, match=f"row 1 has .*{says}"):
            read(made(tmp_path, "a.jsonl", json.dumps(rows[0] | odd)))


def test_a_split_is_of_no_file(tmp_path):
    with pytest.raises(ValueError, match="--split dev is of a data set on the hub"):
        read(made(tmp_path, "a.txt", "a\n"), split="dev")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")
def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [1, 0]}), tmp_path / "a.parquet")
    examples = read(str(tmp_path / "a.parquet"))
    assert examples.inputs == ["a", "b"] and examples.labels == [1, 0]


def test_labels_that_are_no_classes():
    of = lambda labels: Examples(["x"] * len(labels), labels, "a.csv", {"label": "truth"}, len(labels))  # noqa: E731
    assert label_ids(of(["1.0", 0, "1"]), ["a", "b"]) == [1, 0, 1]
    assert label_ids(of(["2", "1"]), ["1", "2"]) == [1, 0]  # names go before numbers
    for labels, wrong in ((["a", "c"], "c"), ([0, 2], "2"), ([-1], "-1"), (["nan"], "nan")):
        with pytest.raises(
            ValueError, match=rf"a.csv: labels in its column truth .*: .*{wrong}; expected a, b"
        ) as found:
            label_ids(of(labels), ["a", "b"])
        assert "--classes" in str(found.value)


def test_a_sample_is_the_same_each_time_and_in_order():
    examples = Examples(list(range(100)), list(range(100)), "a", {}, 100)
    sample = examples.sampled(10)
    assert sample.inputs == examples.sampled(10).inputs == sample.labels == sorted(sample.inputs)
    assert len(sample.inputs) == 10 != len(set(sample.inputs) & set(examples.sampled(10, seed=1).inputs))
    assert examples.sampled(None) is examples and examples.sampled(100) is examples


def test_labels_by_a_name_of_two_classes_are_refused_and_by_numbers_taken():
    """As the cranes of ImageNet, a bird and a machine."""
    names = ["crane", "swan", "crane"]
    examples = Examples(["a", "b"], ["swan", "crane"], "file.csv", {}, 2)
    with pytest.raises(ValueError, match="names that several classes have, crane: number them"):
        label_ids(examples, names)
    assert label_ids(Examples(["a", "b"], ["swan", "swan"], "file.csv", {}, 2), names) == [1, 1]
    assert label_ids(Examples(["a", "b"], [2, "0"], "file.csv", {}, 2), names) == [2, 0]
