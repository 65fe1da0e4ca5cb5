"""Names and sizes that somebody chose to do harm, and formats without digests of types."""

import ast
import json
import re
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import dts
from dts.adapter import AdapterError, check
from dts.adapter import folder as folders
from dts.adapter.card import card
from dts.adapter.rows import entry_tensors
from dts.cli.app import app
from tests.dts.adapter import tiny
from tests.fuzz.adapters import MODULE_FILES, MODULES
from tests.fuzz.form import opened, signed

GOLDEN = Path(__file__).parent / "golden"
PAGE = Path(__file__).parents[3] / "docs/format.md"
NAMES = [
    'a"; print(1); "',
    "a'b",
    "x\n---\nevil: 1",
    "```\nimport os\n```",
    "a: b",
    "- a",
    "{{x}}",
    '\\"); f("',
    "# a",
    "null",
    "$(x)",
    "'\"\\",
    "\u2028x\u0085y",
    "é 漢",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_runs_and_says_only_what_it_means(name):
    yaml = pytest.importorskip("yaml")
    config = json.loads((GOLDEN / "4-sketch/dts_config.json").read_text())
    config["task"] |= {"name": name, "description": name, "class_names": [name]}
    config["base"]["name"] = name
    text = card(config)
    assert re.findall("^---$", text, re.MULTILINE) == ["---"] * 2 and len(re.findall("^```", text, re.MULTILINE)) == 2
    assert yaml.safe_load(text.split("---\n")[1]) == {"tags": ["dts", "adapter"], "base_model": name}
    tree = ast.parse(text.split("```python\n")[1].rsplit("```", 1)[0])
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert sorted(calls) == ["dts.DTSModel.from_pretrained", "model.set_task"]
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    place = name if "/" in name else f"path/to/{name}"
    assert sorted(values) == sorted([place, "path/to/this/folder", name, name])


def resigned(folder: Path, change) -> Path:
    inner = opened(folder)
    change(inner)
    signed(inner)
    inner.write(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(GOLDEN / "4-sketch", tmp_path / "a")


@pytest.mark.parametrize("options", [[], ["--json"], ["--tensors"]])
@pytest.mark.parametrize("name", ["a\u202eb", "\u2066x"])
def test_no_name_steers_the_terminal(folder, name, options):
    resigned(
        folder, lambda inner: inner.config["task"].update(name=name, class_names=[name], description="\t\n" + name)
    )
    shown = CliRunner().invoke(app, ["inspect", str(folder), *options])
    assert shown.exit_code == 0 and name not in shown.output
    if options == ["--json"]:
        assert json.loads(shown.output)["name"] == name


@pytest.mark.parametrize("name", ["\x1b]0;x\x07", "a\x9bb", "a\nb", "\x7f"])
def test_control_characters_are_refused_in_a_folder_and_before_the_work(folder, tmp_path, name):
    resigned(folder, lambda inner: inner.config["task"].update(name=name))
    shown = CliRunner().invoke(app, ["inspect", str(folder)])
    assert shown.exit_code == 2 and not set("\x1b\x07\x9b\x7f") & set(shown.output)

    def never(*_):
        raise AssertionError("the work had begun")

    base = {"a.weight": torch.ones(30, 20)}
    with pytest.raises(AdapterError, match="cannot be written"):
        dts.compress(base, {"a.weight": torch.rand(30, 20)}, tmp_path / "out", name=name, progress=never)
    with pytest.raises(ValueError, match="control characters"):
        dts.compress(base, base | {name: torch.rand(3)}, tmp_path / "out", progress=never)
    assert not (tmp_path / "out").exists()


def test_components_cut_by_a_budget_do_not_keep_the_whole_file(tmp_path):
    base, draw = {"a.weight": torch.zeros(2000, 1000)}, torch.Generator().manual_seed(0)
    tuned = {"a.weight": torch.randn(2000, 8, generator=draw) @ torch.randn(8, 1000, generator=draw)}
    dts.compress(base, tuned, tmp_path / "a", rank_fraction=0.06, method="residual")
    whole = dts.Adapter.load(tmp_path / "a")
    cut = dts.Adapter.load(tmp_path / "a", budget=whole.amr / 3)
    kept = sum(t.untyped_storage().nbytes() for e in cut.entries.values() for t in entry_tensors(e).values())
    assert kept <= cut.nbytes < whole.nbytes / 2


def test_a_million_tensors_and_rows_are_refused_in_bounded_memory(folder):
    row = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(row % i for i in range(1_000_000)) + "}").encode()
    (folder / folders.MODEL).write_bytes(len(header).to_bytes(8, "little") + header)
    wide = folder.with_name("wide")
    shutil.copytree(folder, wide)
    rows = ",".join(f'"{i}":{{"kind":"x","shape":[1]}}' for i in range(1_100_000))
    (wide / folders.CONFIG).write_text(f'{{"format_version":4,"tensors":{{{rows}}}}}')
    del header, rows
    tracemalloc.start()
    with pytest.raises(AdapterError, match="header of"):
        dts.Adapter.load(folder)
    with pytest.raises(AdapterError, match="more than the .* that are read"):
        dts.Adapter.load(wide)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * folders.LARGEST_TEXT


def test_the_page_names_all_that_a_config_has():
    page = PAGE.read_text()
    keys = set(check.CONFIG) | set(check.SECTIONS) | {key for tests in check.SECTIONS.values() for key in tests}
    keys |= {key for pair in check.rows().values() for tests in pair for key in tests} | {"modules", "sha256"}
    assert sorted(key for key in keys if f"`{key}`" not in page) == []
    for name in (folders.CONFIG, folders.MODEL, folders.CARD):
        assert f"`{name}`" in page and (GOLDEN / "4-sketch" / name).is_file()


@pytest.mark.parametrize("version", ["1-residual", "2-vectors", "3-sketch"])
def test_old_formats_refuse_types_that_do_not_belong(tmp_path, version):
    folder = shutil.copytree(GOLDEN / version, tmp_path / "a")
    content = opened(folder)
    other = {"F32": "I32", "U8": "I8", "I32": "F32", "I64": "F64", "I8": "U8"}
    for row in content.rows:
        before, row[1] = row[1], other[row[1]]
        content.write(folder)
        with pytest.raises(AdapterError, match=re.escape(row[0].split("[")[0].rpartition(".")[0][:4])):
            dts.Adapter.load(folder)
        row[1] = before


def test_an_old_delta_of_another_floating_type_is_refused(tmp_path):
    content = opened(GOLDEN / "1-residual")
    row = next(row for row in content.rows if row[0] == "body.0.bias.delta")
    content.config["format_version"], row[1], row[2][:] = 1, "F64", [len(row[3]) // 8]
    content.config["tensors"]["body.0.bias"]["shape"] = row[2]
    signed(content)
    content.write(tmp_path / "a")
    with pytest.raises(AdapterError, match="does not belong to float32"):
        dts.Adapter.load(tmp_path / "a")


@pytest.mark.parametrize(
    "change",
    [
        {"modules.json": [{"path": "2_Dense", "type": "os.system"}]},
        {"2_Dense/config.json": {"activation_function": "os.system"}},
        {"2_Dense/config.json": {"auto_map": {"x": "y"}}},
        {"2_Dense/run.py": {}},
        {"../x.json": {}},
        {"modules.json": None},
    ],
)
def test_modules_name_no_code_of_others(folder, change):
    dts.Adapter.load(resigned(folder, lambda inner: inner.config.update(modules=MODULES)))
    resigned(folder, lambda inner: inner.config.update(modules=MODULES | {"files": MODULE_FILES | change}))
    with pytest.raises(AdapterError, match="modules"):
        dts.Adapter.load(folder)


@pytest.mark.parametrize("norm", [0.0, 1e-30, 1e-6, 1e6, 1e30])
def test_a_norm_that_is_not_that_of_the_components_cuts_nothing(folder, norm):
    resigned(folder, lambda inner: inner.config["tensors"]["body.0.weight"].update(norm=norm))
    try:
        cut = dts.Adapter.load(folder).truncate(nbytes=6_000)
    except ValueError:
        return
    assert all(value.isfinite().all() for value in dict(cut.apply(tiny.base())).values())
