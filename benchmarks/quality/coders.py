"""What entropy coders would save of a whole adapter folder: general ones over all of dts_model.safetensors, and an
ideal one of order 0 over the codes, with a table of its own for every component and sample.

    pip install zstandard
    python -m benchmarks.quality.coders --train OTHER_ADAPTER ADAPTER...
"""

import argparse
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import dts
from dts.adapter.folder import MODEL
from dts_kernels.layout import unpack

PIECE, DICTIONARY = 4096, 112640  # bytes: of what the table is trained on, and of the table


def coded(adapter: dts.Adapter) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(bytes, codes of each component or of a sample) of all stored codes."""
    for entry in adapter.entries.values():
        for factors in entry.matrices:
            if factors is None:
                continue
            for side in (factors.packed.u, factors.packed.v):
                yield side.nbytes, list(unpack(side, factors.packed.rank).numpy().T)
            for sample in factors.samples:
                yield sample.codes.nbytes, [unpack(sample.codes, sample.elements).numpy()]


def ideal(codes: np.ndarray) -> float:
    """Bytes of an ideal coder that knows how often each code comes, and a byte for that."""
    counts = np.bincount(codes.ravel(), minlength=4)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum()) / 8 + 1


def main() -> None:
    import zstandard

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="+", type=Path)
    parser.add_argument("--train", type=Path, required=True, help="adapter that zstd's table is trained on")
    asked = parser.parse_args()
    other = (asked.train / MODEL).read_bytes()
    table = zstandard.train_dictionary(DICTIONARY, [other[i : i + PIECE] for i in range(0, len(other), PIECE)])
    for folder in asked.adapters:
        adapter, content = dts.Adapter.load(folder), (folder / MODEL).read_bytes()
        stored = list(coded(adapter))
        raw = sum(size for size, _ in stored)
        least = sum(min(size, sum(map(ideal, codes))) for size, codes in stored)
        huffman = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
        sizes = {
            "zstd 19": len(zstandard.ZstdCompressor(level=19).compress(content)),
            "zstd 19, trained": len(zstandard.ZstdCompressor(level=19, dict_data=table).compress(content)),
            "xz 9e": len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
            "Huffman of bytes": len(huffman.compress(content) + huffman.flush()),
            "ideal, order 0": len(content) - raw + least,
        }
        saved = ", ".join(
            f"{name} {100 * (len(content) - size) / adapter.nbytes:.1f} %" for name, size in sizes.items()
        )
        print(f"{folder.name}, {adapter.nbytes:,} bytes, codes {100 * raw / adapter.nbytes:.0f} %: {saved}", flush=True)


if __name__ == "__main__":
    main()
