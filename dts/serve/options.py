"""What a server is started with, and everything that is wrong with it, before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dts.adapter.folder import CONFIG
from dts.checkpoint import CheckpointError, open_checkpoint, open_stored
from dts.checkpoint.quantised import method_of
from dts.devices import device_named
from dts.files import in_words
from dts.nn.selection import AUTO
from dts.serve.catalogue import NAME
from dts.serve.encode import Pooling
from dts.serve.waiting import Batching
from dts.sites.diffusers import class_name

NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
SHORTEST_KEY = 16  # characters
QUANTISERS = ("torchao", "bitsandbytes")  # methods that are a library's name


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request;  prompt: tokens of a row, None: as many as the model takes;  tokens: new ones of an
    answer;  rows: of a request, every ``n`` counted;  seconds: that a request may take, the queue included."""

    body: int = 1_000_000
    prompt: int | None = None
    tokens: int = 1024
    rows: int = 64
    seconds: float = 300


@dataclass(frozen=True)
class Options:
    """model: folder, file or hub id of the base;  adapters: the folder that holds theirs;  name: of the base, for
    callers;  memory, pinned: see `Residents`, None: `dts.serve.memory.default_limit`;  api_keys, admin_keys: files with
    a key a line;  drain: seconds that answers may take after SIGTERM;  device: auto, or as PyTorch writes it;  dtype:
    of the base;  quantised_from: the checkpoint that a quantised base is the quantised form of;  trusted: code of the
    base's own may run (``trust_remote_code``)."""

    model: str
    adapters: Path
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: Path | None = None
    admin_keys: Path | None = None
    memory: int | None = None
    pinned: tuple[str, ...] = ()
    pooling: Pooling = "mean"
    device: str = "auto"
    dtype: str = "auto"
    quantised_from: str | None = None
    drain: int = 30
    trusted: bool = False
    batching: Batching = field(default_factory=Batching)
    limits: Limits = field(default_factory=Limits)

    @property
    def base_name(self) -> str:
        return self.name or Path(self.model.rstrip("/")).name

    @property
    def place(self) -> torch.device:
        """The device; raises ValueError where there is none of this name."""
        return device_named(self.device)


def keys_of(file: Path | None) -> list[str]:
    """The keys in a file; lines that are empty or begin with # are none."""
    lines = [] if file is None else file.read_text("utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def missing() -> str:
    """Which libraries are, in a sentence; nothing where all are there."""
    absent = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    return f"dts serve needs {', '.join(absent)}: pip install 'dts-merge[serve]'" if absent else ""


def problems(options: Options, listens: bool = True) -> list[str]:
    """A line for each thing that keeps a server from starting.  listens: at its own port."""
    wrong = [absent] if (absent := missing()) else []
    wrong += _of_processes(os.environ)
    wrong += _of_base(options)
    wrong += _of_adapters(options)
    keys: dict[str, list[str]] = {}
    for what, file in {"--api-keys": options.api_keys, "--admin-keys": options.admin_keys}.items():
        try:
            keys[what] = keys_of(file)
        except (OSError, UnicodeDecodeError) as error:
            wrong.append(f"{what}: {in_words(error) if isinstance(error, OSError) else f'{file} is no text: {error}'}")
            continue
        if file is not None and not keys[what]:
            wrong.append(f"{what}: {file} has no key in it")
        if any(len(key) < SHORTEST_KEY for key in keys[what]):
            wrong.append(f"{what}: a key has fewer than {SHORTEST_KEY} characters")
    if set(keys.get("--api-keys", ())) & set(keys.get("--admin-keys", ())):
        wrong.append("a key is in --api-keys and in --admin-keys: those are for different people")
    wrong += _of_numbers(options)
    try:
        options.place  # noqa: B018  it is looked whether it is there
    except ValueError as error:
        wrong.append(str(error))
    if listens and (taken := _cannot_bind(options.host, options.port)):
        wrong.append(f"--host {options.host} --port {options.port}: {taken}")
    return wrong


def _of_processes(environment: Mapping[str, str]) -> list[str]:
    """What torchrun and other launchers say by the environment: this process is one of several."""
    rank, count = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and count.isdecimal() and int(count) > 1):
        return []
    return [
        f"this is one of {count} processes (RANK={rank}, WORLD_SIZE={count}, as of torchrun), and a server is one: "
        "start it without torchrun.  A base that no device holds is vLLM's (DTS_VLLM_MODE=packed, "
        f"--tensor-parallel-size {count}); replicas of one that a device holds are Ray's (serve run dts.ray.app:app)"
    ]


def _of_base(options: Options) -> list[str]:
    """What is wrong with the base, quantised as it may be, and with the checkpoint that it is said to come from."""
    try:
        stored, quantised = open_stored(options.model)
    except (CheckpointError, OSError, ValueError, ImportError) as error:
        return [f"the model: {in_words(error)}"]
    wrong = []
    if of_diffusers := class_name(stored.config):
        wrong.append(f"the model is {of_diffusers} of diffusers, which answers with no text, classes or embeddings")
    if quantised:
        method = method_of(stored.config)
        if method is None:
            wrong.append(f"the model: {quantised}")  # no config.json says by whom: transformers could not load it
        elif method in QUANTISERS and importlib.util.find_spec(method) is None:
            wrong.append(
                f"the model is quantised by {method}, which is not installed: pip install 'dts-merge[quantised]'"
            )
    if options.quantised_from is not None and not quantised:
        wrong.append("--quantised-from: the model is not quantised")
    elif options.quantised_from is not None:
        try:
            open_checkpoint(options.quantised_from)
        except (CheckpointError, OSError, ValueError, ImportError) as error:
            wrong.append(f"--quantised-from: {error}")
    return wrong


def _of_adapters(options: Options) -> list[str]:
    if not NAME.fullmatch(options.base_name):
        what = f"letters, digits, '_', '-' and '.', not {AUTO!r}"
        return [f"the base's name {options.base_name!r}: {what}; --name gives another"]
    if not options.adapters.is_dir():
        return [f"--adapters: {options.adapters} is no folder"]
    if (options.adapters / CONFIG).is_file():
        return [f"--adapters: {options.adapters} is an adapter itself; give the folder that holds it"]
    there = {one.parent.name for one in options.adapters.glob(f"*/{CONFIG}")}
    wrong = [
        f"--adapters: {options.adapters / name} cannot be asked for, {name!r} chooses a task: rename the folder"
        for name in there & {AUTO}
    ]
    wrong += [
        f"--pin: there is no adapter {name!r} in {options.adapters}" for name in options.pinned if name not in there
    ]
    if options.base_name in there:
        wrong.append(f"{options.base_name!r} is the base's name and an adapter's: --name gives the base another")
    return wrong


def _of_numbers(options: Options) -> list[str]:
    limits, batching = options.limits, options.batching
    least = {
        "--max-body": (limits.body, 1),
        "--max-prompt": (limits.prompt or 1, 1),
        "--max-tokens": (limits.tokens, 1),
        "--max-rows": (limits.rows, 1),
        "--timeout": (limits.seconds, 1),
        "--queue": (batching.queue, limits.rows),
        "--batch": (batching.rows, 1),
        "--batch-tokens": (batching.tokens, 1),
        "--wait": (batching.wait, 0),
        "--drain": (options.drain, 0),
    }
    return [
        f"{name} is {value:g}, and at least {low:g} is needed" for name, (value, low) in least.items() if value < low
    ]


def _cannot_bind(host: str, port: int) -> str | None:
    if not 1 <= port <= 65535:
        return "a port is 1 to 65535"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        return in_words(error)
    return None
