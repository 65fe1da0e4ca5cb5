"""Bytes in one zstd frame, which may come from anywhere: read in pieces, and never more than is expected.

A frame's blocks are counted before anything is decoded: one that is cut off, is followed by more, or says another size
than is expected is refused by its headers alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .errors import Undecodable

LEVEL = 3  # *measured* on bfloat16 weights: 9 takes five times as long for 2 to 8 % less
WINDOW = 1 << 23  # bytes that a reader must keep, the most of any level below 20
BLOCK = 1 << 17  # bytes that one block holds at most
RAW, RUN, RESERVED = 0, 1, 3  # kinds of blocks; a run stores one byte
CHECKSUM = 4  # bytes behind the last block


def zstd() -> Any:
    """The library; raises ImportError that says what to install."""
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        raise ImportError("what is stored bit for bit needs zstandard: pip install 'dts-merge[exact]'") from None


def framed(pieces: Iterable[bytes], size: int) -> Tensor:
    """uint8 [bytes]: one frame of pieces that have ``size`` bytes together."""
    writer = zstd().ZstdCompressor(level=LEVEL, write_checksum=True).compressobj(size=size)
    out = bytearray()
    for piece in pieces:
        out += writer.compress(piece)
    out += writer.flush()
    return torch.frombuffer(out, dtype=torch.uint8)


class Frame:
    """A frame that is read from its start.

    name: for errors;  size: bytes that it must hold.  Raises Undecodable.
    """

    def __init__(self, name: str, stored: Tensor | None, size: int):
        if stored is None or stored.dtype != torch.uint8 or stored.dim() != 1:
            raise Undecodable(f"{name} is missing, or is no frame of bytes")
        self.name, self.size = name, size
        self._content: memoryview = stored.contiguous().numpy().data
        self._reader: Any = None
        self._check()

    def _check(self) -> None:
        library = zstd()
        try:
            about = library.get_frame_parameters(self._content)
            at = library.frame_header_size(self._content)
        except library.ZstdError:
            raise Undecodable(f"{self.name} is no zstd frame") from None
        if about.content_size != self.size:
            raise Undecodable(f"{self.name} says it holds {about.content_size} bytes, where {self.size} belong")
        if about.window_size > WINDOW or about.dict_id or not about.has_checksum:
            raise Undecodable(f"{self.name} is a frame of another kind than is written")
        content, most, last = self._content, 0, False
        while not last:
            head = int.from_bytes(content[at : at + 3], "little")
            last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
            if kind == RESERVED or at + 3 > len(content):
                raise Undecodable(f"{self.name} is cut off or damaged")
            most += length if kind in (RAW, RUN) else BLOCK
            at += 3 + (1 if kind == RUN else length)
        if at + CHECKSUM != len(content):
            raise Undecodable(f"{self.name} is cut off, or has bytes behind its end")
        if most < self.size:
            raise Undecodable(f"{self.name} cannot hold the {self.size} bytes that it says")

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        library = zstd()
        try:
            if self._reader is None:
                self._reader = library.ZstdDecompressor(max_window_size=WINDOW).stream_reader(self._content)
            found = self._reader.read(count)
        except library.ZstdError as error:
            raise Undecodable(f"{self.name} is damaged: {error}") from None
        if len(found) < count:
            raise Undecodable(f"{self.name} ends after {len(found)} of {count} bytes")
        return found

    def end(self) -> None:
        """Nothing may follow, and the checksum must be right."""
        try:
            more = self._reader.read(1) if self._reader is not None else b""
        except zstd().ZstdError as error:
            raise Undecodable(f"{self.name} is damaged: {error}") from None
        if more:
            raise Undecodable(f"{self.name} holds more than the {self.size} bytes that belong")
