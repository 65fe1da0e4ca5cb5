"""Models in several files: an index says which tensor lies in which, and has to agree with what is there."""

from pathlib import Path, PurePosixPath

from dts.checkpoint.checkpoint import Checkpoint
from dts.checkpoint.errors import CheckpointError, some
from dts.checkpoint.files import from_file
from dts.checkpoint.json_file import json_object


def from_index(index: Path) -> Checkpoint:
    """Raises CheckpointError unless each tensor of each shard is named once, and each one named is there."""
    where = json_object(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise CheckpointError(f"{index} is damaged: it has no weight_map of file names")
    names = sorted(set(where.values()))
    outside = [name for name in names if not is_inside(name)]
    if outside:
        raise CheckpointError(f"{index} names files outside of its folder, which are not opened: {some(outside)}")
    absent = [shard for shard in names if not (index.parent / shard).is_file()]
    if absent:
        raise CheckpointError(f"{index} names shards that are not there: {some(absent)}.  Download them again")
    shards = {shard: from_file(index.parent / shard, shard=True) for shard in names}
    wrong = []
    absent = [name for name, shard in where.items() if name not in shards[shard].tensors]
    if absent:
        wrong.append(f"{index} names tensors that its shards do not have: {some(absent)}")
    for shard, content in shards.items():
        twice = [name for name in content.tensors if where.get(name, shard) != shard]
        unnamed = [name for name in content.tensors if name not in where]
        if twice:
            wrong.append(
                f"{shard} in {index.parent} has tensors that the index says are in another shard: {some(twice)}"
            )
        if unnamed:
            wrong.append(f"{shard} in {index.parent} has tensors that {index.name} does not name: {some(unnamed)}")
    if wrong:
        raise CheckpointError("\n  ".join(wrong))
    tied = {name: first for shard in shards.values() for name, first in shard.tied.items()}
    return Checkpoint(str(index), {name: shards[shard].tensors[name] for name, shard in where.items()}, tied)


def is_inside(name: str) -> bool:
    """Is it a plain path below the folder it is named in?"""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and not set(name) & {"\\", ":", "\0"}
