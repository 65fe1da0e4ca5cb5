"""Files that are no PyTorch or safetensors weights, told by their first bytes, with the way to go on."""

import zipfile
from pathlib import Path

BYTES = {  # what a file starts with -> what it is, and what to do
    b"version https://git-lfs": ("a git-lfs pointer, not the weights themselves", "run `git lfs pull` in its folder"),
    b"GGUF": (
        "a GGUF file (llama.cpp)",
        "give the original Hugging Face folder; or, of unquantised weights, load it "
        "with transformers' from_pretrained(folder, gguf_file=...) and save_pretrained() it",
    ),
    b"ggjt": ("a GGML file (llama.cpp)", "give the original Hugging Face folder"),
    b"lmgg": ("a GGML file (llama.cpp)", "give the original Hugging Face folder"),
    b"tjgg": ("a GGML file (llama.cpp)", "give the original Hugging Face folder"),
    b"\x89HDF\r\n\x1a\n": (
        "an HDF5 file (Keras or TensorFlow)",
        "load it with transformers 4's from_pretrained(folder, from_tf=True) and save_pretrained() it",
    ),
    b"\x93NUMPY": ("a numpy array", "give a dict of tensors: {name: torch.from_numpy(array)}"),
    b"\x1f\x8b": ("a gzip archive", "unpack it and give what is inside"),
    b"BZh": ("a bzip2 archive", "unpack it and give what is inside"),
    b"\xfd7zXZ\x00": ("an xz archive", "unpack it and give what is inside"),
    b"\x28\xb5\x2f\xfd": ("a zstandard archive", "unpack it and give what is inside"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it and give what is inside"),
    b"Rar!": ("a rar archive", "unpack it and give what is inside"),
}
ENDINGS = {
    ".onnx": ("an ONNX graph", "give the model it was exported from"),
    ".gguf": BYTES[b"GGUF"],
    ".h5": BYTES[b"\x89HDF\r\n\x1a\n"],
    ".keras": ("a Keras model", "give the PyTorch weights"),
    ".msgpack": (
        "Flax weights",
        "load them with transformers 4's from_pretrained(folder, from_flax=True) and save_pretrained() them",
    ),
    ".pb": ("a TensorFlow graph", "give the PyTorch weights"),
    ".tflite": ("a TensorFlow Lite model", "give the PyTorch weights"),
    ".npz": ("a numpy archive", "give a dict of tensors: {name: torch.from_numpy(array)}"),
    ".npy": BYTES[b"\x93NUMPY"],
    ".distcp": (
        "a shard of a distributed checkpoint (FSDP)",
        "merge its folder: `accelerate merge-weights FOLDER OUT`",
    ),
    ".zip": ("a zip archive", "unpack it and give what is inside"),
    ".tar": ("a tar archive", "unpack it and give what is inside"),
    ".engine": ("a TensorRT engine", "give the model it was built from"),
}


def foreign(path: Path) -> str | None:
    """What a file is, and what to do, if it is known to be no PyTorch or safetensors file; else None."""
    if is_safetensors(path):  # whatever the length of the header, which comes first, looks like
        return None
    with open(path, "rb") as file:
        start = file.read(512)
    found = _kind(path, start)
    return found and f"{path} is {found[0]}: {found[1]}"


def is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def is_safetensors(path: Path) -> bool:
    """Does it start as a safetensors file does, with the length of a header and the header's brace?"""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _kind(path: Path, start: bytes) -> tuple[str, str] | None:
    if not start:
        return "empty (0 bytes)", "copy or download it again"
    for bytes_, kind in BYTES.items():
        if start.startswith(bytes_):
            return kind
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page, not weights", "the download ended at a login or error page; download it again"
    if text.startswith((b"{", b"[")) and path.suffix != ".json":
        shown = start[:80].decode("utf-8", "replace")
        return f"a text ({shown!r}), not weights", "the download ended with a message; download it again"
    if start[257:262] == b"ustar":
        return ENDINGS[".tar"]
    if start.startswith(b"PK"):
        return _zip_kind(path)
    if start[4:8] == b"TFL3":
        return ENDINGS[".tflite"]
    return ENDINGS.get(path.suffix.lower())


def _zip_kind(path: Path) -> tuple[str, str] | None:
    """A zip may be PyTorch's own (None), TorchScript, numpy's, Keras' or any other."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged zip or PyTorch archive, cut off or altered", "copy or download it again"
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return "a TorchScript archive: a program, not only tensors", (
            "save torch.jit.load(file).state_dict() instead, best as .safetensors"
        )
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return ENDINGS[".npz"]
    if any(name.endswith(".weights.h5") for name in names):
        return ENDINGS[".keras"]
    return ENDINGS[".zip"]
