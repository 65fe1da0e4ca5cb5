"""``dts compress --config file.yaml``: what the file says, checked as a whole before anything is done."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dts.cli.common import at, of_state, parse_fraction, parse_size
from dts.files import expanded

SIZES = ("budget", "rank_fraction", "target_error")
WORDS = ("device", "only", "vocabulary")
OPTIONS = (*SIZES, "method", "vectors", "kind", "allow_empty", *WORDS)  # of all fine-tunes, or of one
BASE_IS = "base_is"  # of the one base, so of all fine-tunes alike
TOP = ("base", BASE_IS, "revision", "out", "finetunes", *OPTIONS)
EACH = ("path", "revision", "state", "name", "class_names", "description", *OPTIONS)
EXAMPLE = """base: models/base
out: adapters
budget: 1%
finetunes:
  - models/mood
  - path: models/topic
    budget: 2%"""


@dataclass(frozen=True)
class Job:
    """One fine-tune.  how: keywords of `dts.compress`."""

    name: str
    source: str
    folder: Path
    how: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Recipe:
    """A whole run: a base, its fine-tunes, and where the adapters go."""

    base: str
    out: Path
    jobs: list[Job]
    base_is: str = "plain"


def read_recipe(file: Path, out: Path | None = None) -> Recipe:
    """Places in the file are relative to its folder.  out: instead of the file's.

    Raises ValueError that lists all that is wrong with it.
    """
    file = expanded(file)
    given, wrong = _parsed(file), list[str]()
    _unknown(given, TOP, "", wrong)
    _empty(given, "", wrong)
    base, entries = given.get("base"), _entries(given.get("finetunes"), wrong)
    if not isinstance(base, str):
        wrong.append("base: missing, the folder, file or hub id of the base model")
    target = out or given.get("out")
    if not isinstance(target, str | Path):
        wrong.append("out: missing, the folder that the adapters go to")
    jobs = []
    defaults = {key: given[key] for key in (*OPTIONS, BASE_IS) if key in given}
    _keywords(defaults, "", wrong)  # once, rather than for every fine-tune
    for place, entry in entries:
        _unknown(entry, EACH, place, wrong)
        source = entry.get("path")
        if not isinstance(source, str):
            wrong.append(f"{place}path: missing, the fine-tune's folder, file or hub id")
            continue
        own = {key: value for key, value in entry.items() if key in OPTIONS}
        sized = own.keys() & set(SIZES) or own.get("method") == "exact"  # which has no size, whatever others have
        inherited = {k: v for k, v in defaults.items() if not (k in SIZES and sized)}
        how = _keywords(own, place, wrong) | {
            key: value for key, value in _keywords(inherited, "", []).items() if key not in _keywords(own, place, [])
        }
        how |= _words(entry, place, wrong)
        source = _place(file, source, entry.get("revision"), place, wrong)
        try:
            source = of_state(source, None if entry.get("state") is None else str(entry["state"]))
        except ValueError as error:
            wrong.append(f"{place}state: {error}")
        name = str(entry.get("name") or _named(source))
        how["name"] = name
        if not re.fullmatch(r"[^/\\.\x00-\x1f][^/\\\x00-\x1f]*", name):
            wrong.append(f"{place}name: {name!r} cannot be a folder's name; give it one")
        jobs.append(Job(name, source, Path(), how))
    names = [job.name for job in jobs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        wrong.append(f"finetunes: several are named {', '.join(twice)}: give each a name of its own, as in name: other")
    if wrong:
        raise ValueError(f"{file} cannot be followed:\n  " + "\n  ".join(dict.fromkeys(wrong)))
    folder = expanded(out) if out else file.parent / expanded(str(target))
    jobs = [Job(job.name, job.source, folder / job.name, job.how) for job in jobs]
    source = _place(file, str(base), given.get("revision"), "", [])
    return Recipe(source, folder, jobs, given.get(BASE_IS, "plain"))


def _parsed(file: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise ImportError("--config needs the package pyyaml: pip install pyyaml") from None
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; it would say, for example:\n{EXAMPLE}")
    try:
        given = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML: {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"{file} holds no names with values; it should say, for example:\n{EXAMPLE}")
    return given


def _unknown(given: dict, known: tuple[str, ...], place: str, wrong: list[str]) -> None:
    for key in given:
        if key == BASE_IS and key not in known:
            wrong.append(f"{place}{key}: of the base, so of all fine-tunes: say it beside base")
        elif key not in known:
            near = difflib.get_close_matches(str(key), known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            wrong.append(f"{place}{key}: not known; {hint}")


def _empty(given: Any, place: str, wrong: list[str]) -> None:
    """Texts without a letter, however deep."""
    if isinstance(given, str) and not given.strip():
        wrong.append(f"{place}: nothing is said there; leave it out, or give a value")
    items = given.items() if isinstance(given, dict) else enumerate(given, 1) if isinstance(given, list) else ()
    for key, value in items:
        named = f"{key}" if isinstance(given, dict) else f"item {key}"
        _empty(value, f"{place}, {named}" if place else named, wrong)


def _entries(given: Any, wrong: list[str]) -> list[tuple[str, dict]]:
    """(where it stands, what it says) of each fine-tune; a path alone stands for {path: it}."""
    if isinstance(given, dict):
        items = [(f"finetunes, {name}: ", entry, {"name": name}) for name, entry in given.items()]
    elif isinstance(given, list):
        items = [(f"finetunes, item {i}: ", entry, {}) for i, entry in enumerate(given, 1)]
    else:
        items = []
    if not items:
        wrong.append("finetunes: missing, a list of the fine-tunes' folders, files or hub ids")
    found = []
    for place, entry, name in items:
        if isinstance(entry, str):
            entry = {"path": entry}
        if isinstance(entry, dict):
            found.append((place, name | entry))
        else:
            wrong.append(f"{place}a path, or names with values such as path: models/mood, not {entry!r}")
    return found


def _keywords(given: dict, place: str, wrong: list[str]) -> dict[str, Any]:
    """Of `dts.compress`."""
    from dts.adapter.options import ADAPTER_KINDS, BASES, VECTORS, Options
    from dts.codec.methods import CHOICES

    how: dict[str, Any] = {}
    sizes = [key for key in SIZES if key in given]
    if len(sizes) > 1:
        wrong.append(f"{place}{' and '.join(sizes)} say the size twice: keep one")
    for key in sizes:
        try:
            how |= parse_size(str(given[key])) if key == "budget" else {key: parse_fraction(str(given[key]))}
        except ValueError as error:
            wrong.append(f"{place}{key}: {error}")
    chosen = {"method": CHOICES, "vectors": VECTORS, "kind": ADAPTER_KINDS, BASE_IS: BASES}
    for key, choices in chosen.items():
        if key in given and given[key] not in list(choices):  # which may be a list, and so no key
            near = difflib.get_close_matches(str(given[key]), list(choices), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            wrong.append(f"{place}{key}: one of {', '.join(choices)}, not {given[key]!r}{hint}")
        elif key in given:
            how[key] = given[key]
    for key in WORDS:
        if key in given and not isinstance(given[key], str):
            wrong.append(f"{place}{key}: a word, as --{key} takes it, not {given[key]!r}")
        elif key in given:
            how[key] = given[key]
    try:
        Options(**{key: how[key] for key in WORDS if key in how})
    except ValueError as error:
        wrong.append(f"{place}{error}")
    if "allow_empty" in given and not isinstance(given["allow_empty"], bool):
        wrong.append(f"{place}allow_empty: true or false, not {given['allow_empty']!r}")
    elif "allow_empty" in given:
        how["allow_empty"] = given["allow_empty"]
    return how


def _words(entry: dict, place: str, wrong: list[str]) -> dict[str, Any]:
    names, text = entry.get("class_names"), entry.get("description")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        wrong.append(f"{place}class_names: a list of names, such as [sad, glad], not {names!r}")
    if text is not None and not isinstance(text, str):
        wrong.append(f"{place}description: a sentence, not {text!r}")
    return {key: entry[key] for key in ("class_names", "description") if entry.get(key) is not None}


def _place(file: Path, source: str, revision: Any, place: str, wrong: list[str]) -> str:
    """A path beside the file; a hub id as it is, with its revision."""
    beside = file.parent / expanded(source)
    try:
        return at(str(beside) if beside.exists() else source, None if revision is None else str(revision))
    except ValueError as error:
        wrong.append(f"{place}revision: {error}")
        return source


def _named(source: str) -> str:
    from dts.cli.names import named

    return next(iter(named([source])))
