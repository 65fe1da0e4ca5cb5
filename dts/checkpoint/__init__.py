"""Base and fine-tunes: opened lazily, paired by name, told apart by fingerprint."""

from dts.checkpoint.checkpoint import Checkpoint, Lazy, dtype_note
from dts.checkpoint.errors import CheckpointError, NotRead, OtherDtype, Quantised
from dts.checkpoint.fingerprint import digests, fingerprint, sampled_digest
from dts.checkpoint.mismatch import Mismatch
from dts.checkpoint.open import open_checkpoint, open_stored
from dts.checkpoint.pairing import Pair, Pairing, pair
from dts.checkpoint.safetensors_file import Damaged, SafetensorsFile, write_safetensors

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Damaged",
    "Lazy",
    "Mismatch",
    "NotRead",
    "OtherDtype",
    "Pair",
    "Pairing",
    "Quantised",
    "SafetensorsFile",
    "digests",
    "dtype_note",
    "fingerprint",
    "open_checkpoint",
    "open_stored",
    "pair",
    "sampled_digest",
    "write_safetensors",
]
