"""What is written to a disk: beside its place first, whole or not at all, by one writer at a time."""

from dts.files.errors import in_words
from dts.files.folder import OVERTAKEN, Building, Leftover, building, check_free, check_place, set_aside
from dts.files.lock import Busy, Lock
from dts.files.mapped import Mapped, mapped_files
from dts.files.one_file import one_file
from dts.files.place import expanded, real, sync_tree, within, write_text
from dts.files.watch import Changed, Watch

__all__ = [
    "OVERTAKEN",
    "Building",
    "Busy",
    "Changed",
    "Leftover",
    "Lock",
    "Mapped",
    "Watch",
    "building",
    "check_free",
    "check_place",
    "expanded",
    "in_words",
    "mapped_files",
    "one_file",
    "real",
    "set_aside",
    "sync_tree",
    "within",
    "write_text",
]
