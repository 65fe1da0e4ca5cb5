"""Every kind of source, and what is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from dts.checkpoint import CheckpointError, Damaged, SafetensorsFile, fingerprint, open_checkpoint, write_safetensors
from dts.checkpoint.safetensors_file import DTYPES, layout_of


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "body.0.weight": torch.randn(4, 6, generator=generator),
        "body.0.bias": torch.randn(4, generator=generator).bfloat16(),
        "steps": torch.tensor(3),
        "none": torch.zeros(0, 5),
    }


def same(checkpoint, state):
    assert sorted(checkpoint.names) == sorted(state)
    for name, value in state.items():
        loaded = checkpoint.load(name)
        assert torch.equal(loaded, value) and loaded.dtype == value.dtype == checkpoint.dtype(name)
        assert checkpoint.shape(name) == tuple(value.shape)


def sharded(folder, state, extension, save):
    folder.mkdir()
    where = {name: f"shard-{i % 2}{extension}" for i, name in enumerate(state)}
    for shard in set(where.values()):
        save({name: value for name, value in state.items() if where[name] == shard}, folder / shard)
    index = {".safetensors": "model.safetensors.index.json", ".bin": "pytorch_model.bin.index.json"}[extension]
    (folder / index).write_text(json.dumps({"weight_map": where}))


def test_all_kinds_of_files_and_folders(state, tmp_path):
    (tmp_path / "hf").mkdir()
    save_file(state, tmp_path / "hf/model.safetensors")
    (tmp_path / "hf/config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "bin").mkdir()
    torch.save(state, tmp_path / "bin/pytorch_model.bin")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "trainer.pt")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    sharded(tmp_path / "shards", state, ".safetensors", save_file)
    sharded(tmp_path / "binshards", state, ".bin", torch.save)
    for name in ("hf", "hf/model.safetensors", "bin", "trainer.pt", "old.bin", "shards", "binshards"):
        same(open_checkpoint(tmp_path / name), state)
        same(open_checkpoint(str(tmp_path / name)), state)
    same(open_checkpoint(state), state)
    assert open_checkpoint(tmp_path / "hf").config == {"model_type": "bert"}
    prints = {fingerprint(open_checkpoint(tmp_path / name)) for name in ("hf", "bin", "shards", "trainer.pt")}
    assert prints == {fingerprint(open_checkpoint(state))}


def test_modules_and_ties(tmp_path):
    module = torch.nn.Sequential(torch.nn.Embedding(7, 5), torch.nn.Linear(5, 7, bias=False), torch.nn.Linear(5, 2))
    module[1].weight = module[0].weight
    checkpoint = open_checkpoint(module)
    assert checkpoint.tied == {"1.weight": "0.weight"} and checkpoint.parameters == 35 + 12
    torch.save(module.state_dict(), tmp_path / "tied.bin")
    assert open_checkpoint(tmp_path / "tied.bin").tied == {"1.weight": "0.weight"}


def test_pickled_objects_are_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"w": torch.ones(2), "x": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(CheckpointError, match="holds Python objects"):
        open_checkpoint(tmp_path / "evil.bin")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["objects", "old objects", "zeros", "text", "cut", "not named", "no tensor"])
def test_every_reader_of_pickles_refuses_them_in_one_way_and_never_tells_how_to_run_them(content, tmp_path):
    from dts.exports import import_bitdelta
    from dts.exports.peft_folder import read_peft

    file = tmp_path / "adapter_model.bin"
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    found = {"objects": CheckpointError("x"), "old objects": CheckpointError("x"), "not named": {3: torch.ones(2)}}
    torch.save(
        found.get(content, {"w": "no tensor"}), file, _use_new_zipfile_serialization=not content.startswith("old")
    )
    raw = {"zeros": bytes(500), "text": b"hello world", "cut": file.read_bytes()[:400]}
    file.write_bytes(raw.get(content, file.read_bytes()))
    said = []
    for read in (lambda: import_bitdelta(file, {"w": torch.ones(2)}), lambda: read_peft(tmp_path)):
        with pytest.raises(CheckpointError) as error:
            read()
        said.append(str(error.value))
    assert said[0] == said[1] and str(file) in said[0] and "weights_only" not in said[0]
    assert ("could run any code" in said[0]) == ("objects" in content)


def test_refusals_say_what_there_is(state, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.md").write_text("")
    with pytest.raises(CheckpointError, match="notes.md"):
        open_checkpoint(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        open_checkpoint(tmp_path / "absent/model.safetensors")
    (tmp_path / "empty/dts_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is an adapter"):
        open_checkpoint(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="not tensors: epoch"):
        open_checkpoint(state | {"epoch": 3})
    with pytest.raises(CheckpointError, match="no tensors"):
        open_checkpoint({})
    with pytest.raises(CheckpointError, match="meta"):
        open_checkpoint(torch.nn.Linear(2, 2, device="meta"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        open_checkpoint("someone/some-model")
    sharded(tmp_path / "shards", state, ".safetensors", save_file)
    (tmp_path / "shards/shard-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not there: shard-1.safetensors"):
        open_checkpoint(tmp_path / "shards")


def test_a_hub_that_cannot_be_reached_is_a_clear_error(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def offline(*args, **options):
        raise hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match="hub did not give it: no connection"):
        open_checkpoint("someone/some-model")


def test_a_hub_id_is_its_snapshot(state, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "abc123").mkdir()
    save_file(state, tmp_path / "abc123/model.safetensors")
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: str(tmp_path / "abc123"))
    checkpoint = open_checkpoint("someone/some-model")
    assert (checkpoint.source, checkpoint.revision) == ("someone/some-model", "abc123")
    same(checkpoint, state)


def test_written_files_are_what_the_library_reads(state, tmp_path):
    path = tmp_path / "a.safetensors"
    many = state | {name: torch.arange(6).view(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    write_safetensors(path, layout_of(many.items()), many.__getitem__, {"format": "pt"})
    ours, theirs = SafetensorsFile(path), load_file(path)
    assert ours.metadata == {"format": "pt"} and set(theirs) == set(many)
    for name, value in many.items():
        for loaded in (ours.load(name), theirs[name]):
            assert loaded.dtype == value.dtype and loaded.shape == value.shape
            assert torch.equal(loaded.view(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))


def test_damaged_files_name_their_tensors(state, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(Damaged, match="body.0|steps"):
        open_checkpoint(path)
    path.write_bytes(content.replace(b'"shape":[4,6]', b'"shape":[4,7]'))
    with pytest.raises(Damaged, match="body.0.weight"):
        open_checkpoint(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(Damaged, match="cut off within its header"):
        open_checkpoint(path)


def test_loading_does_not_change_the_file(state, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    before = path.read_bytes()
    open_checkpoint(path).load("body.0.weight").zero_()  # copy-on-write
    assert path.read_bytes() == before


def test_fingerprint_sees_every_kind_of_change(state):
    renamed = {"x" + name: value for name, value in state.items()}
    others = [
        renamed,
        state | {"steps": torch.tensor(4)},
        state | {"none": torch.zeros(5, 0)},
        {name: value.double() for name, value in state.items()},
    ]
    prints = {fingerprint(open_checkpoint(s)) for s in [state, *others]}
    assert len(prints) == 5
    assert fingerprint(open_checkpoint(dict(reversed(state.items())))) == fingerprint(open_checkpoint(state))


PEAK = """
import sys, threading, time, torch
import dts
from dts.adapter import compress, write_checkpoint

def anonymous():
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

folder, peak, stop = sys.argv[1], 0.0, False
compress({"w": torch.zeros(64, 64)}, {"w": torch.randn(64, 64)}, nbytes=10_000)  # loads what is loaded once
start = anonymous()

def watch():
    global peak
    while not stop:
        peak = max(peak, anonymous())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
adapter = compress(folder + "/base.safetensors", folder + "/tuned.safetensors", out=folder + "/a", rank_fraction=0.004)
write_checkpoint(folder + "/base.safetensors", adapter, folder + "/full")
stop = True
thread.join()
print(peak - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_a_few_tensors(tmp_path):
    """A model of 20 tensors of 4 MiB: less than 8 of them in memory at any time, compressing and writing it back."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layer.{i}.weight": torch.randn(1024, 1024, generator=generator) for i in range(20)}
    tuned = {name: value + 0.01 for name, value in base.items()}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    del base, tuned
    live = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # else what was freed still counts for a while
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=live)
    assert float(done.stdout.split()[-1]) < 8 * 4


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("pytorch_model.bin", b"no archive", "cannot be read as a PyTorch file.  Copy or download"),
        ("pytorch_model.bin", b"\x80\x02}q\x00.junk", "cannot be read as a PyTorch file: "),
        ("model.safetensors.index.json", b"[]", "not an object"),
        ("model.safetensors.index.json", b"{}", "weight_map"),
        ("model.safetensors.index.json", b"{", "damaged"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}', "weight_map"),
        ("config.json", b"{broken", "config.json is damaged"),
        ("config.json", b"[]", "config.json is damaged"),
    ],
)
def test_damaged_model_folders_name_the_file(tmp_path, file, content, says):
    from safetensors.torch import save_file

    if file == "config.json":
        save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as raised:
        open_checkpoint(tmp_path)
    assert file in str(raised.value)


@pytest.mark.parametrize("mapped", [True, False])
def test_pieces_are_written_one_after_another_and_parts_of_them_read(tmp_path, mapped):
    pieces = [torch.arange(6.0).view(2, 3), torch.empty(0, 4), torch.arange(6.0, 11.0)]
    layout = {"a": (torch.float32, (11,)), "b": (torch.uint8, (3,))}
    made = {"a": pieces, "b": torch.tensor([1, 2, 3], dtype=torch.uint8)}
    write_safetensors(tmp_path / "x.safetensors", layout, made.__getitem__)
    file = SafetensorsFile(tmp_path / "x.safetensors", mapped)
    assert torch.equal(file.load("a"), torch.arange(11.0)) and file.load("b").tolist() == [1, 2, 3]
    assert file.part("a", 4, 3).tolist() == [4.0, 5.0, 6.0] and file.part("b", 2, 1).tolist() == [3]
    assert file.part("a", 11, 0).shape == (0,) and file.part("b", 0, 3).dtype == torch.uint8
    for first, count in ((-1, 2), (10, 2), (0, -1), (12, 0)):
        with pytest.raises(ValueError, match="a has no elements"):
            file.part("a", first, count)
    for wrong in ([pieces[0]], [piece.double() for piece in pieces], [*pieces, torch.ones(1)], torch.ones(1, 11)):
        with pytest.raises(ValueError, match="its header says"):
            write_safetensors(tmp_path / "y.safetensors", layout, (made | {"a": wrong}).__getitem__)
