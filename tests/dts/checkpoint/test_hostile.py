"""Whatever the safetensors library refuses is refused, as `Damaged`; what both read is equal."""

import json

import pytest
import torch
from safetensors import safe_open

from dts.checkpoint import CheckpointError, Damaged, SafetensorsFile, open_checkpoint

ROW = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


def packed(header: str | bytes, data: bytes = bytes(8), length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def row(shape, offsets, dtype="F32") -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": offsets})


HOSTILE = {
    "empty": b"",
    "seven bytes": bytes(7),
    "length alone": bytes(8),
    "huge length": b"\xff" * 8 + b"{}",
    "beyond the end": packed("{}", b"", 1000),
    "above the limit": packed("{}", b"", 100_000_001),
    "no utf-8": packed(b"\xff\xfe"),
    "no json": packed("{"),
    "a list": packed("[]", b""),
    "a number": packed("7", b""),
    "no bracket": packed(' x{"a":1}'),
    "utf-16": packed('{"a":1}'.encode("utf-16")),
    "negative shape": packed(f'{{"a":{row([-2, -1], [0, 8])}}}'),
    "fraction": packed(f'{{"a":{row([2.0], [0, 8])}}}'),
    "truth": packed(f'{{"a":{row([True, 2], [0, 8])}}}'),
    "text": packed(f'{{"a":{row(["2"], [0, 8])}}}'),
    "overflow": packed(f'{{"a":{row([2**63, 2, 2], [0, 8])}}}'),
    "10^30": packed(f'{{"a":{row([10**30], [0, 8])}}}'),
    "wrapping": packed(f'{{"a":{row([2**62, 4, 2], [0, 8])}}}'),
    "overlap": packed(f'{{"a":{ROW},"b":{row([2], [4, 12])}}}', bytes(12)),
    "same place": packed(f'{{"a":{ROW},"b":{ROW}}}'),
    "hole": packed(f'{{"a":{row([2], [4, 12])}}}', bytes(12)),
    "hole between": packed(f'{{"a":{ROW},"b":{row([2], [12, 20])}}}', bytes(20)),
    "trailing": packed(f'{{"a":{ROW}}}', bytes(9)),
    "cut": packed(f'{{"a":{ROW}}}', bytes(7)),
    "backwards": packed(f'{{"a":{row([2], [8, 0])}}}'),
    "negative offset": packed(f'{{"a":{row([2], [-8, 0])}}}'),
    "three offsets": packed(f'{{"a":{row([2], [0, 4, 8])}}}'),
    "one offset": packed(f'{{"a":{row([2], [8])}}}'),
    "wrong size": packed(f'{{"a":{row([3], [0, 8])}}}'),
    "unknown dtype": packed(f'{{"a":{row([2], [0, 8], "F33")}}}'),
    "dtype 3": packed(f'{{"a":{row([2], [0, 8], 3)}}}'),
    "no shape": packed('{"a":{"dtype":"F32","data_offsets":[0,8]}}'),
    "row of null": packed('{"a":null}'),
    "dtype twice": packed('{"a":{"dtype":"F32",' + ROW[1:] + "}"),
    "metadata number": packed(f'{{"__metadata__":{{"a":1}},"a":{ROW}}}'),
    "metadata list": packed(f'{{"__metadata__":[],"a":{ROW}}}'),
    "nested": packed('{"a":' + "[" * 100_000),
    "nan": packed(f'{{"a":{row([float("nan")], [0, 8])}}}'),
    "minus zero": packed('{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}'),
    "half surrogate": packed(f'{{"\\ud800":{ROW}}}'),
    "control character": packed(f'{{"a\x01":{ROW}}}'),
    "name twice": packed(f'{{"a":{ROW},"a":{ROW}}}'),
    "leading space": packed(f' {{"a":{ROW}}}'),
}
SOUND = {
    "plain": packed(f'{{"a":{ROW}}}', b"\0\0\x80?\0\0\0@"),
    "spaces": packed(f'{{"a":{ROW}}}   '),
    "metadata": packed(f'{{"__metadata__":{{"a":"b"}},"a":{ROW}}}'),
    "nothing": packed("{}", b""),
    "no elements": packed(f'{{"a":{row([0, 3], [0, 0])}}}', b""),
    "number": packed(f'{{"a":{row([], [0, 4])}}}', bytes(4)),
    "two": packed(f'{{"b":{row([1], [4, 8])},"a":{row([1], [0, 4])}}}'),
    "empty name": packed(f'{{"":{ROW}}}'),
    "complex": packed(f'{{"a":{row([1], [0, 8], "C64")}}}'),
    "fnuz": packed(f'{{"a":{row([8], [0, 8], "F8_E4M3FNUZ")}}}'),
}


def library(path) -> dict | None:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception:
        return None


STRICTER = {"name twice", "leading space"}  # than the library


@pytest.mark.parametrize("name", HOSTILE)
def test_what_the_library_does_with_each_hostile_file_is_known(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(HOSTILE[name])
    assert (library(path) is not None) == (name in STRICTER)


@pytest.mark.parametrize("name", [*HOSTILE, *SOUND])
def test_we_are_at_least_as_strict(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes((HOSTILE | SOUND)[name])
    theirs = library(path)
    assert name in HOSTILE or theirs is not None
    if name in HOSTILE:
        with pytest.raises(Damaged):
            SafetensorsFile(path)
        return
    for mapped in (True, False):
        file = SafetensorsFile(path, mapped=mapped)
        assert file.tensors.keys() == theirs.keys()
        for key, value in theirs.items():
            ours = file.load(key)
            assert ours.dtype == value.dtype and ours.shape == value.shape
            assert torch.equal(ours.flatten().view(torch.uint8), value.flatten().view(torch.uint8))


def test_a_file_cut_off_while_it_is_mapped_is_an_error_not_the_end(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(SOUND["plain"])
    file = SafetensorsFile(path)
    with open(path, "r+b") as other:
        other.truncate(0)
    with pytest.raises(Damaged, match="altered while it was read"):
        file.load("a")


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F128", "float32"])
def test_a_dtype_that_is_not_known_is_no_damage(tmp_path, dtype):
    """The file may be whole: another download would be the same."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed(f'{{"a":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,8]}},"b":3}}'))
    with pytest.raises(CheckpointError, match="altered header: 'b' has no dtype.*download"):
        open_checkpoint(tmp_path)
    path.write_bytes(packed(f'{{"a":{{"dtype":"{dtype}","shape":[16],"data_offsets":[0,8]}}}}'))
    with pytest.raises(CheckpointError, match=rf"not read here, {dtype} \(a\): F64, .*Write it anew in one") as error:
        open_checkpoint(tmp_path)
    assert "download" not in str(error.value)
