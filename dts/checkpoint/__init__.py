"""Base and fine-tunes: opened lazily, paired by name, told apart by fingerprint."""

from dts.checkpoint.checkpoint import Checkpoint, CheckpointError, Lazy, open_checkpoint
from dts.checkpoint.fingerprint import digests, fingerprint, sampled_digest
from dts.checkpoint.pairing import Mismatch, Pair, Pairing, pair
from dts.checkpoint.safetensors_file import Damaged, SafetensorsFile, write_safetensors

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Damaged",
    "Lazy",
    "Mismatch",
    "Pair",
    "Pairing",
    "SafetensorsFile",
    "digests",
    "fingerprint",
    "open_checkpoint",
    "pair",
    "sampled_digest",
    "write_safetensors",
]
