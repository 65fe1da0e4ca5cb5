"""Names and sizes that somebody chose to do harm, and formats without digests of types."""

import ast
import json
import re
import shutil
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
import zstandard
from typer.testing import CliRunner

import dts
from dts.adapter import AdapterError, check
from dts.adapter import folder as folders
from dts.adapter.card import card
from dts.adapter.route import ROUTE, InputStatistics, read_route
from dts.adapter.rows import entry_tensors
from dts.checkpoint import Mismatch
from dts.cli.app import app
from tests.dts.adapter import tiny
from tests.fuzz.adapters import MODULE_FILES, MODULES
from tests.fuzz.form import opened, signed, with_header
from tests.fuzz.model import Tiny

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


LARGE = [1 << 20, 1 << 10]  # of a tensor of 4 GiB


def zeros(size: int) -> bytes:
    """A frame that says it holds so many bytes in runs of a zero, 4 bytes for each 128 KiB."""
    run, last = (b"".join([((1 << 17 << 3) + kind).to_bytes(3, "little"), b"\0"]) for kind in (2, 3))
    start = b"\x28\xb5\x2f\xfd" + bytes([0xC4, 13 << 3]) + size.to_bytes(8, "little")  # a window of 8 MiB
    return start + run * ((size >> 17) - 1) + last + b"sum?"


@pytest.mark.parametrize("gaps", [False, True])
def test_some_kibibytes_that_say_they_are_four_gibibytes_take_no_memory(tmp_path, gaps):
    folder, base, elements = shutil.copytree(GOLDEN / "5-exact", tmp_path / "a"), tiny.base(), LARGE[0] * LARGE[1]

    def larger(inner):
        inner.config["tensors"]["body.0.weight"] |= {"shape": LARGE, "changed": elements}
        inner.rows = [row for row in inner.rows if gaps or row[0] != "body.0.weight.gaps"]
        for row in inner.rows:
            if row[0].startswith("body.0.weight."):
                row[3] = zeros(4 * elements)
                row[2] = [len(row[3])]

    resigned(folder, larger)
    model = dts.DTSModel(Tiny().eval())
    tracemalloc.start()
    adapter = dts.Adapter.load(folder)
    assert not adapter.verify(base).ok
    uses = [
        lambda: dict(adapter.apply(base)),
        lambda: dict(adapter.apply(base, check=False)),
        lambda: adapter.entries["body.0.weight"].apply(base["body.0.weight"]),
        lambda: dts.adapter.write_checkpoint(base, adapter, tmp_path / "out"),
        lambda: model.load_task("a", adapter),
    ]
    for use in uses:
        with pytest.raises((ValueError, Mismatch), match=r"body.0.weight.*\n?.*(20, 24|1048576)"):
            use()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * folders.LARGEST_TEXT and not (tmp_path / "out").exists()


def again(frame: bytes, **options) -> bytes:
    """What is in a frame in another."""
    return zstandard.ZstdCompressor(**options).compress(zstandard.decompress(frame))


def headed(frame: bytes, window: int, dictionary: bytes = b"") -> bytes:
    """The frame with a header that says a window of 2^window bytes, and a dictionary's number of one byte."""
    size = zstandard.get_frame_parameters(frame).content_size.to_bytes(8, "little")
    start = frame[:4] + bytes([0xC4 + len(dictionary), (window - 10) << 3]) + dictionary + size
    return start + frame[zstandard.frame_header_size(frame) :]


SKIPPED = b"\x50\x2a\x4d\x18\x01\0\0\0x"
FRAMES = {
    "of a large window": (lambda frame: headed(frame, 27), "another kind"),
    "without a checksum": (again, "another kind"),
    "without its size": (lambda frame: again(frame, write_checksum=True, write_content_size=False), "says it holds"),
    "of a dictionary": (lambda frame: headed(frame, 20, b"\7"), "another kind"),
    "behind one that is skipped": (lambda frame: SKIPPED + frame, "says it holds|is no zstd frame"),
    "before one that is skipped": (lambda frame: frame + SKIPPED, "bytes behind its end"),
    "twice": (lambda frame: frame + frame, "bytes behind its end"),
    "of nothing": (lambda frame: b"", "no zstd frame|is missing"),
}


@pytest.mark.parametrize("what", FRAMES)
@pytest.mark.parametrize("part", ["changes", "gaps"])
def test_a_frame_of_another_kind_is_refused_by_its_tensor(tmp_path, part, what):
    folder, (change, says) = shutil.copytree(GOLDEN / "5-exact", tmp_path / "a"), FRAMES[what]

    def other(inner):
        row = next(row for row in inner.rows if row[0] == f"embed.weight.{part}")
        row[3] = change(row[3])
        row[2] = [len(row[3])]

    resigned(folder, other)
    with pytest.raises(AdapterError, match=rf"embed.weight.{part}.*({says})"):
        dts.Adapter.load(folder)


def test_a_file_for_routers_that_says_it_is_endless_is_refused_unread(tmp_path):
    folder, numbers = tmp_path, 1 << 33
    metadata = {"format": "1", "layer": "x", "examples": "9", "adapter": "0" * 16, "sha256": "0" * 16}
    shapes = {
        "mean": ("F32", [numbers], 4),
        "deviation": ("BF16", [numbers], 2),
        "loadings": ("F8_E4M3", [1, numbers], 1),
    }
    header, at = {"__metadata__": metadata}, 0
    for name, (dtype, shape, size) in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size * numbers]}
        at += size * numbers
    with open(folder / ROUTE, "wb") as file:
        file.write(with_header(header, b""))
        file.truncate(file.tell() + at)  # of no place on the disk
    wide = (folder / ROUTE).stat().st_size
    tracemalloc.start()
    with pytest.raises(AdapterError, match="8,589,934,592 wide, more than the 1,048,576 that are read; dts route"):
        read_route(folder, None)
    with open(folder / ROUTE, "wb") as file:
        file.write((1 << 24).to_bytes(8, "little"))
        file.truncate(1 << 35)
    with pytest.raises(AdapterError, match="has a header of 16,777,216 bytes"):
        read_route(folder, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert wide > 1 << 35 and peak < 1 << 20


def test_every_byte_of_a_file_for_routers_counts(tmp_path):
    folder = shutil.copytree(GOLDEN / "5-exact", tmp_path / "a")
    adapter = dts.Adapter.load(folder)
    draw = torch.Generator().manual_seed(0)
    adapter.tell(InputStatistics.of("body.0.weight", torch.randn(5, 3, generator=draw)))
    adapter.save(folder, overwrite=True)
    content, silent = (folder / ROUTE).read_bytes(), []
    for place in range(len(content)):
        (folder / ROUTE).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = read_route(folder, adapter.config["sha256"])
            except AdapterError:
                continue
        newer = found is None and len(said) == 1  # in words
        if not newer and (found is None or found.digest != adapter.inputs.digest):
            silent.append(place)
    assert silent == []


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
