"""A reader of adapters of version 5 after docs/format.md alone: json, struct, NumPy and, of kind exact, zstandard."""

import json
import struct
from pathlib import Path

import numpy as np
import zstandard

NUMPY = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}


def read(folder: Path) -> tuple[dict, dict, dict]:
    """(rows by name, norms of dropped tensors, stored tensors by name; BF16 as its bits)."""
    config = json.loads((folder / "dts_config.json").read_text("utf-8"))
    content = (folder / "dts_model.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    blobs = {}
    for name, about in json.loads(content[8:start]).items():
        first, last = about["data_offsets"]
        blobs[name] = np.frombuffer(content[start + first : start + last], NUMPY[about["dtype"]])
    patterns = [""]
    for shared, text in zip(config["names"][::2], config["names"][1::2]):
        patterns.append(patterns[-1][:shared] + text)
    patterns, table = patterns[1:], iter(blobs.pop("table").tolist())

    def whole(byte: int) -> int:
        return byte if byte < 128 else byte - 128 + 128 * whole(next(table))

    def fill(template):
        if isinstance(template, dict):
            return {key: fill(inner) for key, inner in template.items()}
        if isinstance(template, list):
            return [fill(inner) for inner in template]
        if isinstance(template, bool) or not isinstance(template, int):
            return template
        if template == 1:
            return whole(next(table))
        raw = bytes(next(table) for _ in range(abs(template)))
        return raw.hex() if template < 0 else struct.unpack("<f" if template == 4 else "<d", raw)[0]

    rows, dropped, tensors, last, at = {}, {}, {}, {}, dict.fromkeys(blobs, 0)
    pattern, numbers = -1, []
    for byte in table:
        head = whole(byte)
        pattern = pattern + 1 if head == 0 else head - 1
        if head:
            numbers = [whole(next(table)) for _ in range(patterns[pattern].count("\n"))]
            last[pattern] = whole(next(table))
        left = iter(numbers)
        name = "".join(str(next(left)) if letter == "\n" else letter for letter in patterns[pattern])
        row = fill(config["rows"][last[pattern]])
        if isinstance(row, float):
            dropped[name] = row
            continue
        for suffix, (dtype, *sizes) in row.pop("tensors", {}).items():
            shape = [row["shape"][int(size)] if isinstance(size, str) else size for size in sizes]
            first, at[dtype] = at[dtype], at[dtype] + int(np.prod(shape))
            tensors[name + suffix] = blobs[dtype][first : at[dtype]].reshape(shape)
        rows[name] = row
    return rows, dropped, tensors


def components(u: np.ndarray, v: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """sum_k sigma_k u_k v_k^T of packed codes."""
    codes = [(packed[:, :, None] >> np.array([0, 2, 4, 6]) & 3).reshape(len(packed), -1) for packed in (u, v)]
    left, right = (np.array([1, 4, -1, -4])[code[:, : len(sigma)]] for code in codes)
    return (left * sigma) @ right.T


def sample(codes: np.ndarray, about: dict, columns: int) -> np.ndarray:
    """A sample as a matrix, after docs/method.md."""
    (kept, window), stride, rows = about.get("share", [1, 1]), about["stride"], len(codes)
    windows = -(-columns // (stride * window))
    dense = np.zeros((rows, windows * window * stride))

    def h(block: int, group: int) -> int:
        x = (about["seed"] + 0x9E3779B1 * block + 0x85EBCA77 * group) % 2**32
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
        return x ^ x >> 16

    for i in range(rows):
        block = i // stride
        for t in range(kept * windows):
            first = t // kept * window
            turn = h(block, -1 - first // 64) >> 26
            group = first + ((window >> t % kept) % window ^ turn % window)
            column = stride * group + (i + ((h(block, group) >> 16) * stride >> 16)) % stride
            dense[i, column] = about["scale"] * [1, 4, -1, -4][codes[i, t // 4] >> 2 * (t % 4) & 3]
    return dense[:, :columns]


def rounded(stored: np.ndarray, scales: np.ndarray, bits: int, shape: list[int]) -> np.ndarray:
    """Numbers of few bits; scales: the bits of bfloat16s."""
    count = int(np.prod(shape))
    each = np.unpackbits(stored, bitorder="little")[: bits * count].reshape(count, bits).astype(int)
    numbers = each @ (1 << np.arange(bits)) - (each[:, -1] << bits)
    return (numbers * np.repeat((scales.astype("<u4") << 16).view("<f4"), 64)[:count]).reshape(shape)


def exact(stored: dict[str, np.ndarray], base: np.ndarray) -> np.ndarray:
    """The fine-tune's elements of the base's, both unsigned whole numbers;  stored: the frames by suffix."""
    made = base.flatten()
    if not stored:
        return made
    width = made.itemsize
    c = numbers(stored["changes"], width)
    where = np.cumsum(numbers(stored["gaps"], 4).astype(np.int64) + 1) - 1 if "gaps" in stored else slice(None)
    for place, code in zip(np.arange(made.size)[where].tolist(), c.tolist(), strict=True):
        d = code // 2 if code % 2 == 0 else -(code + 1) // 2
        made[place] = (int(made[place]) + d) % 2 ** (8 * width)
    return made


def numbers(frame: np.ndarray, width: int) -> np.ndarray:
    """What lies in byte planes in a zstd frame, of so many bytes a number."""
    raw = np.frombuffer(zstandard.decompress(frame.tobytes()), np.uint8)
    blocks = [raw[i : i + 2**20 * width].reshape(width, -1) for i in range(0, len(raw), 2**20 * width)]
    return np.concatenate([np.ascontiguousarray(planes.T).view(f"<u{width}").ravel() for planes in blocks])
