"""Altered adapters: each is refused in plain words, or gives the very same weights, classes and files.

    python -m tests.fuzz.adapters [--count 100000] [--seed 0] [--jobs CORES]

A mutation is drawn from (seed, number) alone.  Two of three are an attacker's, who computes all digests anew wherever
the files can still be parsed (as are those of folders older than the digests): weights may differ then, but they are
numbers, and nothing ends in another error.  What loads is also cut, saved, written as a checkpoint, shown by
`dts inspect` and loaded into a model.
"""

import argparse
import collections
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

import numpy as np
import torch
import zstandard
from typer.testing import CliRunner

import dts
from dts.adapter import AdapterError, BudgetError, write_checkpoint
from dts.adapter import folder as folders
from dts.adapter.packed import TABLE
from dts.adapter.route import ROUTE, InputStatistics
from dts.checkpoint import Mismatch, open_checkpoint
from dts.checkpoint.safetensors_file import DTYPES
from dts.cli.app import app
from dts.codec import exact
from dts.codec.exact import same_bits
from tests.dts.adapter import tiny
from tests.fuzz.form import Folder, opened, rows_of, signed, with_header
from tests.fuzz.model import Tiny, inputs

KINDS = {
    "residual": {"rank_fraction": 0.3},
    "paper": {"method": "paper", "rank_fraction": 0.5},
    "vectors": {"budget": 0.6, "method": "residual"},
    "rounded": {"budget": 0.5, "vectors": "3bit"},
    "sketch": {"budget": 0.6, "method": "sketch"},
    "difference": {"budget": 0.4, "method": "residual", "kind": "difference"},
    "exact": {"method": "exact"},
    "routed": {"budget": 0.6, "method": "sketch"},
}
GOLDEN = sorted(  # what is not written any more, and what only a cut makes
    path
    for path in Path(tiny.__file__).with_name("golden").iterdir()
    if path.is_dir() and (path.name[0] in "1234" or path.name in ("5-thinned", "5-exact"))
)
MODULE_FILES = {
    "modules.json": [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ],
    "2_Dense/config.json": {"in_features": 20, "activation_function": "torch.nn.modules.activation.Tanh"},
    "sentence_bert_config.json": {"max_seq_length": 12},
}
MODULES = {"files": MODULE_FILES, "parts": {"": "", "2_Dense": "2_Dense."}}
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**64,
    10**30,
    -0.0,
    0.5,
    1e300,
    1e39,
    1e-320,
    float("nan"),
    float("inf"),
    "",
    "x",
    "a\0b",
    "\x1b[31m",
    "../x",
    "weight",
    [],
    [[]],
    {},
    [1],
    [None],
    {"x": 1},
    [10**30],
    "float16",
    "int64",
    "bool",
    "float8_e4m3fn",
    "NaN",
    "os.system",
    "../x/config.json",
]
MEMORY = 512  # MiB that a run may take beside the folders that it starts with
RAW = [float("nan"), float("inf"), 3e38, -1e30, 0.0]


# -- mutations ------------------------------------------------------------------------------------------------------


def places(value, path=()):
    """(container, key) of everything in a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from places(inner)


def bits(folder: Folder, draw: random.Random) -> None:
    part = draw.choice(["text", "model", "file"])
    if part == "file" and folder.files:
        name = draw.choice(list(folder.files))
        folder.files[name] = flipped(folder.files[name], draw)
    elif part == "text":
        folder.text = flipped(folder.text_bytes(), draw)
    else:
        folder.model = flipped(folder.model_bytes(), draw)


def flipped(content: bytes, draw: random.Random) -> bytes:
    altered = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        if altered:
            altered[draw.randrange(len(altered))] ^= 1 << draw.randrange(8)
    return bytes(altered)


def cut(folder: Folder, draw: random.Random) -> None:
    content = folder.model_bytes() if draw.random() < 0.5 else None
    if content is not None:
        folder.model = content[: draw.randrange(len(content))] + draw.choice([b"", b"", b"more"])
    else:
        folder.text = folder.text_bytes()[: draw.randrange(len(folder.text_bytes()))]


def json_value(folder: Folder, draw: random.Random) -> None:
    container, key = draw.choice(list(places(folder.config)))
    how = draw.randrange(5)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container[key], (int, float)) and not isinstance(container[key], bool):
        container[key] = draw.choice([container[key] + 1, container[key] - 1, -container[key], container[key] * 2])
    elif how == 2:
        other, where = draw.choice(list(places(folder.config)))
        container[key] = json.loads(json.dumps(other[where]))
    elif how == 3 and isinstance(container, dict):
        new = draw.choice([f"{key}x", "", "a\0b", *[k for k, _ in folder.config["tensors"].items()]])
        container[new] = container.pop(key)
    else:
        container[key] = json.loads(json.dumps(draw.choice(VALUES)))  # its own


def nested(folder: Folder, draw: random.Random) -> None:
    depth = draw.choice([10, 63, 64, 65, 1000, 100_000])
    inner = draw.choice(['{"a":', "["])
    text = folder.text_bytes().decode()
    value = inner * depth + "1" + ("}" if inner == '{"a":' else "]") * depth
    at = draw.choice([text.find('"class_names"'), text.find('"shape"'), 1])
    folder.text = (text[:at] + f'"nested": {value}, ' + text[at:]).encode()


def twice(folder: Folder, draw: random.Random) -> None:
    text = folder.text_bytes().decode()
    row = draw.choice(['"method": "paper"', '"bytes": 1', '"files": {}', '"shape": [1]'])
    at = draw.choice([i for i, letter in enumerate(text) if letter == "{"])
    folder.text = (text[: at + 1] + row + ", " + text[at + 1 :]).encode()


def tensor(folder: Folder, draw: random.Random) -> None:
    row = draw.choice(folder.rows)
    how = draw.randrange(8)
    if how == 0:
        folder.rows.remove(row)
    elif how == 1:
        row[0] = draw.choice([row[0] + "x", "", row[0].rpartition(".")[0] + ".value", draw.choice(folder.rows)[0]])
    elif how == 2:
        row[1] = draw.choice([*DTYPES, "F4", "X"])
    elif how == 3 and row[2]:
        row[2] = draw.choice(
            [
                row[2][::-1],
                [*row[2], 1],
                [-1 * size for size in row[2]],
                [10**30],
                row[2] + [0],
                [torch.Size(row[2]).numel()],
                [1.0],
                [None],
            ]
        )
    elif how == 4:
        other = draw.choice(folder.rows)
        row[0], other[0] = other[0], row[0]
    elif how == 5:
        other = draw.choice(folder.rows)
        row[1:], other[1:] = other[1:], row[1:]
    elif how == 6:
        row[3] = bytes(draw.randrange(256) for _ in row[3])
    elif row[1] in ("F32", "I32", "I64"):
        size = DTYPES[row[1]].itemsize
        raw = bytearray(row[3])
        at = draw.randrange(len(raw) // size) * size
        if row[1] == "F32":
            raw[at : at + 4] = bytes(torch.tensor([draw.choice(RAW)]).view(torch.uint8).tolist())
        else:
            raw[at : at + size] = draw.choice([-1, 10_000, 2**31 - 1]).to_bytes(size, "little", signed=True)
        row[3] = bytes(raw)
    else:
        row[3] = flipped(row[3], draw)


def resized(folder: Folder, draw: random.Random) -> None:
    row = draw.choice(folder.rows)
    if row[2] and row[2][0] > 1:
        less = draw.choice([1, row[2][0] - 1])
        row[3] = row[3][: len(row[3]) // row[2][0] * less]
        row[2] = [less, *row[2][1:]]


def file(folder: Folder, draw: random.Random) -> None:
    how = draw.randrange(3)
    name = draw.choice(
        ["model.safetensors", "config.json", "modeling.py", "tokenizer.py", "tokenizer.json", "vocab.txt"]
    )
    if how == 0:
        folder.files.clear()
    elif how == 1:
        folder.files[name] = b"{}"
        folder.config["files"][name] = {"bytes": 2, "sha256": "44136fa355b3678a"}
    else:
        folder.files[next(iter(folder.files), name)] = b"other"


def header(folder: Folder, draw: random.Random) -> None:
    content = folder.model_bytes()
    length = int.from_bytes(content[:8], "little")
    rows = json.loads(content[8 : 8 + length])
    container, key = draw.choice(list(places(rows)))
    container[key] = json.loads(json.dumps(draw.choice(VALUES)))  # its own
    text = json.dumps(rows).encode()
    folder.model = len(text).to_bytes(8, "little") + text + content[8 + length :]


def gentle(folder: Folder, draw: random.Random) -> None:
    """What keeps the form: numbers, elements, codes, tensors exchanged with their like, a type wherever it is said."""
    how = draw.randrange(5)
    row = draw.choice(folder.rows)
    if how == 0:
        row[3] = flipped(row[3], draw)
    elif how == 1:
        other = draw.choice([other for other in folder.rows if other[1:3] == row[1:3]])
        row[3], other[3] = other[3], row[3]
    elif how == 2:
        container, key = draw.choice(
            [(container, key) for container, key in places(folder.config) if type(container[key]) in (int, float)]
        )
        factor = draw.choice([0, 0.5, 2, 3, 1e10, 1e20, 1e29, -1])
        container[key] = container[key] * factor if type(container[key]) is float else int(container[key] * factor)
    elif how == 3:
        name, of = draw.choice([(n, r) for n, r in folder.config["tensors"].items() if r["kind"] in ("delta", "value")])
        row = next(row for row in folder.rows if row[0] == f"{name}.{of['kind']}")
        like = [key for key, dtype in DTYPES.items() if row[1] in DTYPES and dtype.itemsize == DTYPES[row[1]].itemsize]
        row[1] = draw.choice(like)
        if draw.random() < 0.7:
            of["dtype"] = str(DTYPES[row[1]])[6:]
    else:
        floats = [row for row in folder.rows if row[1] == "F32"]
        row = draw.choice(floats)
        at = draw.randrange(len(row[3]) // 4) * 4
        raw = bytearray(row[3])
        raw[at : at + 4] = bytes(torch.tensor([draw.choice([*RAW, 1e20, -1.0, 1e-40])]).view(torch.uint8).tolist())
        row[3] = bytes(raw)


def on_disk(folder: Folder, draw: random.Random) -> None:
    """Names, templates and the table, as they lie there."""
    text, rows = json.loads(folder.text_bytes()), rows_of(folder.model_bytes())
    if draw.random() < 0.5:
        container, key = draw.choice([*places(text["rows"]), *places(text["names"])])
        container[key] = json.loads(json.dumps(draw.choice([1, 4, 8, -4, -8, 2, "0", "1", "7", {}, *VALUES])))
        folder.text = json.dumps(text).encode()
        return
    content, table = folder.model_bytes(), next(row[3] for row in rows if row[0] == TABLE)
    at = draw.randrange(len(table))
    other = draw.choice([bytes([draw.randrange(256)]) + table[at + 1 :][: len(table)], bytes(len(table) - at)])
    folder.model = content.replace(table, table[:at] + other)


def frame(folder: Folder, draw: random.Random) -> None:
    """What a frame of kind exact holds or how it is written, `result` and the count of changes as they then are."""
    row = draw.choice([row for row in folder.rows if row[0].endswith((".changes", ".gaps"))])
    content, how = bytearray(zstandard.decompress(row[3])), draw.randrange(8)
    options, pieces = {"write_checksum": True}, (b"", b"")
    if how < 3:
        for _ in range(draw.choice([1, 1, 3])):
            content[draw.randrange(len(content))] = draw.choice([0, 1, 2, 127, 128, 255])
    elif how == 3:
        content = content[: draw.randrange(len(content))]
    elif how == 4:
        content += bytes(draw.choice([1, 4, 1 << 20]))
    elif how == 5:
        options = draw.choice([{}, {"write_checksum": True, "write_content_size": False}])
    elif how == 6:
        window = zstandard.ZstdCompressionParameters(window_log=draw.choice([10, 24, 27]), write_checksum=True)
        options = {"compression_params": window}
    else:
        other = draw.choice([b"\x50\x2a\x4d\x18\x01\x00\x00\x00x", zstandard.compress(b""), row[3]])
        pieces = draw.choice([(other, b""), (b"", other)])
    row[3] = zstandard.ZstdCompressor(**options).compress(bytes(content)).join(pieces)
    row[2] = [len(row[3])]
    name = row[0].rpartition(".")[0]
    stored = {key: torch.frombuffer(bytearray(raw), dtype=torch.uint8) for key, _, _, raw in folder.rows}
    about, base = folder.config["tensors"][name], tiny.base()[name]
    if row[0].endswith(".changes"):
        about["changed"] = int(np.frombuffer(content, np.uint8).reshape(base.itemsize, -1).any(0).sum())
    patch = exact.Patch(about["changed"], stored[f"{name}.changes"], stored.get(f"{name}.gaps"))
    made = exact.decode(name, patch, base).numpy().tobytes()
    added = b"".join(raw for key, _, _, raw in folder.rows if key == f"{name}.added")
    about["result"] = hashlib.sha256(made + added).hexdigest()[:16]


def route(folder: Folder, draw: random.Random) -> None:
    """The file of what a router knows."""
    content, how = folder.files[ROUTE], draw.randrange(4)
    stop = 8 + int.from_bytes(content[:8], "little")
    if how == 0:
        folder.files[ROUTE] = content[:stop] + flipped(content[stop:], draw)
    elif how == 1:
        folder.files[ROUTE] = draw.choice([flipped(content, draw), content[: draw.randrange(len(content))]])
    else:
        header = json.loads(content[8:stop])
        container, key = draw.choice(list(places(header) if how == 2 else places(header["__metadata__"])))
        container[key] = json.loads(json.dumps(draw.choice([*VALUES, "1", "2", "9" * 15, "9" * 4000, [1 << 40]])))
        folder.files[ROUTE] = with_header(header, content[stop:])


def link(folder: Folder, draw: random.Random) -> None:
    name = draw.choice([folders.CONFIG, folders.MODEL, *folder.files])
    folder.links[name] = draw.choice(["../outside", "inside.json", "folder"])


# raised by a second alteration of what the first one took away, or nested too deeply to be read
GONE = (LookupError, ValueError, TypeError, AttributeError, StopIteration, RecursionError, zstandard.ZstdError)

OWN = {"exact": frame, "5-exact": frame, "routed": route}  # of a kind alone, every other time
MUTATIONS = (
    (gentle,) * 5 + (tensor, json_value, on_disk) * 3 + (bits, cut, nested, twice, resized, file, header, header, link)
)


# -- what becomes of one ---------------------------------------------------------------------------------------------


@dataclass
class Truth:
    """What an adapter gives when nothing was altered."""

    weights: dict
    about: tuple
    inputs: str | None  # the digest of what a router knows


def truth(path: Path, base) -> Truth:
    adapter = dts.Adapter.load(path)
    return Truth(dict(adapter.apply(base)), about(adapter), known(adapter))


def about(adapter) -> tuple:
    files = {name: path.read_bytes() for name, path in adapter.files.items()}
    return adapter.name, adapter.class_names, adapter.kind, adapter.model_config, files, adapter.config.get("modules")


def known(adapter) -> str | None:
    return adapter.inputs.digest if adapter.inputs is not None else None


def outcome(path: Path, base, expected: Truth, attacked: bool, draw: random.Random) -> str:
    """refused | identical | other (an attacker's) | silent: ... | unexpected: ..."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # a difference that its signer made next to nothing: it is applied, and said in words
            warnings.filterwarnings("ignore", "the change of .* is too small for their dtype")
            warnings.filterwarnings("ignore", ".* is of a newer version of dts, and is not used to choose tasks")
            adapter = dts.Adapter.load(path)
            report = adapter.verify(base)
            if not report.ok:
                return "refused"
            weights = dict(adapter.apply(base))
    except (AdapterError, Mismatch) as error:
        return f"unexpected: {error}" if "Error(" in str(error) else "refused"
    except BaseException as error:
        return f"unexpected: {type(error).__name__}: {error}"[:300]
    failed = used(adapter, path, base, weights, draw)
    if failed:
        return failed
    same = about(adapter) == expected.about and known(adapter) in (None, expected.inputs)  # the file is optional
    same = same and list(map(str, sorted(weights))) == sorted(expected.weights)
    if same and all(same_bits(value, expected.weights[name]) for name, value in weights.items()):
        return "identical"
    if not attacked:
        return "silent: other weights, classes, files or inputs of a router"
    odd = not_numbers(weights, adapter)
    if odd:
        return f"silent: {odd}"
    return "other"


def used(adapter, path: Path, base, weights: dict, draw: random.Random) -> str | None:
    """What goes wrong in the rest of the package with an adapter that loads; a third of it each time."""
    for use in (cut_again, into_a_model, as_a_checkpoint, shown):
        if draw.random() < 0.34:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    failed = use(adapter, path, base, weights, draw)
            except BaseException as error:
                failed = f"{type(error).__name__}: {error}"
            if failed:
                return f"unexpected: {use.__name__}: {failed}"[:300]
    return None


def cut_again(adapter, path: Path, base, weights: dict, draw: random.Random) -> str | None:
    """Truncated, saved and loaded again."""
    again = path.with_name(path.name + "again")
    shutil.rmtree(again, ignore_errors=True)
    try:
        if draw.random() < 0.5:
            smaller = adapter.truncate(nbytes=draw.randrange(100, 12_000))
        else:
            smaller = dts.Adapter.load(path, budget=draw.random())
    except (BudgetError, AdapterError):  # too little; a norm that is not that of the components
        return None
    except ValueError as error:
        return None if "of which no prefix is a model" in str(error) else str(error)
    smaller.save(again)
    loaded = dts.Adapter.load(again)
    return "; ".join(loaded.verify(base).problems) or not_numbers(dict(loaded.apply(base)), loaded)


def into_a_model(adapter, path: Path, base, weights: dict, draw: random.Random) -> str | None:
    """One call of a `DTSModel`: the shapes of the weights, and numbers where those are of an ordinary size."""
    model = dts.DTSModel(Tiny().eval())
    try:
        model.load_task("altered", adapter)
    except ValueError:
        return None
    with torch.no_grad():
        logits, classes = model(*inputs(), tasks="altered")
    words = weights["embed.weight"].shape[0]
    if tuple(logits.shape) != (2, words) or classes.shape[0] != 2:
        return f"outputs of {list(logits.shape)} and {list(classes.shape)}, {words} words"
    numbers = [value for value in weights.values() if value.numel() and value.is_floating_point()]
    ordinary = all(bool((value.abs() < 1e4).all()) for value in numbers)  # of NaN nothing is less
    if ordinary and not (logits.isfinite().all() and classes.isfinite().all()):
        return "outputs are no numbers"
    return None


def as_a_checkpoint(adapter, path: Path, base, weights: dict, draw: random.Random) -> str | None:
    """Written as a folder, and nothing beside it."""
    out = path.with_name(path.name + "out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    before = sorted(path.parent.iterdir())
    write_checkpoint(base, adapter, out / "model")
    if sorted(path.parent.iterdir()) != before or [inner.name for inner in out.iterdir()] != ["model"]:
        return "files beside the folder"
    code = [file.name for file in (out / "model").rglob("*") if file.suffix in (".py", ".sh", ".so", ".bin", ".pkl")]
    return f"code: {code}" if code else None


def shown(adapter, path: Path, base, weights: dict, draw: random.Random) -> str | None:
    """`dts inspect`: no error, nothing that steers a terminal."""
    result = CliRunner().invoke(app, ["inspect", str(path), *draw.choice([[], ["--json"], ["--tensors"]])])
    if result.exit_code:
        return f"exit code {result.exit_code}: {result.output[-200:]}"
    odd = {letter for letter in result.output if letter != "\n" and category(letter) in ("Cc", "Cs")}
    return f"letters {odd}" if odd else None


def not_numbers(weights: dict, adapter) -> str | None:
    """The first tensor with elements that are no numbers but for those kept bit for bit, or that are infinite but for
    tensors stored as they are."""
    raw = {
        name
        for name, entry in adapter.entries.items()
        if entry.kind in ("delta", "value") or entry.added_rows is not None
    }
    bit_for_bit = {name for name, entry in adapter.entries.items() if entry.kind == "exact"}
    for name, value in weights.items():
        entry = adapter.entries.get(name)
        if name in bit_for_bit or entry is not None and entry.tied_to in bit_for_bit:
            continue
        if value.is_floating_point() and (value.isnan().any() or name not in raw and value.isinf().any()):
            owner = adapter.entries.get(name)
            if owner is None or owner.tied_to not in raw or value.isnan().any():
                return f"{name} is not finite"
    return None


class Fuzzer:
    """Adapters of all kinds, and a place for altered ones."""

    def __init__(self):
        memory = Path("/dev/shm")
        self.place = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None))
        torch.set_num_threads(1)
        self.base = open_checkpoint(tiny.base())
        self.folders, self.truths = {}, {}
        for name, tuned in (("tuned", tiny.finetuned()), ("lightly", tiny.lightly())):
            source = self.place / name
            source.mkdir()
            torch.save(tuned, source / "pytorch_model.bin")
            (source / "config.json").write_text(json.dumps(tiny.CONFIG))
            (source / "tokenizer_config.json").write_text('{"model_max_length": 12}')
        pooled = torch.randn(9, 24, generator=torch.Generator().manual_seed(0))
        routed = InputStatistics.of("body.0.weight", pooled)
        for kind, options in KINDS.items():
            source = self.place / ("lightly" if kind == "exact" else "tuned")
            inputs = routed if kind == "routed" else None
            dts.compress(tiny.base(), source, out=self.place / kind, name="tiny", inputs=inputs, **options)
            self._add(kind, self.place / kind)
        for path in GOLDEN:
            self._add(path.name, path)
        modules = self.folders["residual"].copy()
        modules.config["modules"] = MODULES
        signed(modules)
        modules.write(self.place / "modules")
        self._add("modules", self.place / "modules")

    def _add(self, kind: str, path: Path) -> None:
        self.folders[kind], self.truths[kind] = opened(path), truth(path, self.base)

    def one(self, seed: int, number: int) -> str:
        draw = random.Random(f"{seed} {number}")
        kind, attacked = draw.choice(list(self.folders)), draw.random() < 0.67
        folder = self.folders[kind].copy()
        for _ in range(draw.choice([1, 1, 1, 2])):
            try:
                own = OWN.get(kind) if draw.random() < 0.5 else None
                (own or draw.choice(MUTATIONS))(folder, draw)
            except GONE:
                pass
        if attacked:
            try:
                signed(folder)
            except GONE:
                pass
        return self.try_one(folder, kind, attacked or folder.config.get("format_version") in (1, 2, 3), draw)

    def try_one(self, folder: Folder, kind: str, attacked: bool, draw: random.Random | None = None) -> str:
        path = self.place / f"altered{os.getpid()}"
        try:
            folder.write(path)
        except GONE:
            return "refused"  # not even a folder
        return outcome(path, self.base, self.truths[kind], attacked, draw or random.Random(0))

    def close(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)


def run(fuzzer: Fuzzer, seed: int, numbers) -> tuple[collections.Counter, list[str]]:
    """(how often each outcome came, a line for each failure)."""
    counts, failures = collections.Counter(), []
    for number in numbers:
        result = fuzzer.one(seed, number)
        counts[result.partition(":")[0]] += 1
        if ":" in result:
            failures.append(f"--seed {seed}, number {number}: {result}")
    return counts, failures


def peak() -> int:
    """MiB that this process took at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _work(job) -> tuple[collections.Counter, list[str]]:
    fuzzer = Fuzzer()
    try:
        before = peak()
        counts, failures = run(fuzzer, job[0], range(job[1], job[2], job[3]))
        if peak() - before > MEMORY:
            failures.append(f"--seed {job[0]}: took {peak() - before} MiB of memory, more than {MEMORY}")
        return counts, failures
    finally:
        fuzzer.close()


def summary(counts: collections.Counter) -> str:
    return (
        f"{counts['refused']} refused, {counts['identical']} identical, {counts['other']} other weights by who "
        f"computed all digests anew, {counts['silent']} silent, {counts['unexpected']} unexpected"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    total, failed = collections.Counter(), []
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for counts, failures in pool.imap(_work, [(args.seed, i, args.count, args.jobs) for i in range(args.jobs)]):
            total += counts
            failed += failures
    print(*failed[:50], sep="\n")
    print(summary(total))
    if sum(total.values()) != args.count:
        print(f"only {sum(total.values())} of {args.count} were tried")
    return 0 if sum(total.values()) == args.count and not failed else 1


if __name__ == "__main__":
    raise SystemExit(main())
