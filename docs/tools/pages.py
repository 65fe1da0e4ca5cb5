"""Pages of the site that are not files of docs/: those of the repository's other folders, and the reference.

A hook of mkdocs.  Links are written as the repository has them, so that they work there too.  Here a link to a page of
the site is turned to where that is, one to another file of the repository becomes plain text, and one to nothing fails.
"""

import importlib
import inspect
import os
import re
from pathlib import Path
from types import FunctionType

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
METHODS = (FunctionType, property, classmethod)
PARTS = ("dts.nn.wrapper.", "dts.adapter.data")  # where public classes are made that stand in several files
ELSEWHERE = {  # place in the site -> file of the repository
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "examples.md": "examples/README.md",
    "findings.md": "benchmarks/quality/FINDINGS.md",
    "merging.md": "benchmarks/quality/MERGING.md",
    "ratios.png": "benchmarks/results/quality/ratios.png",
    "headline.png": "benchmarks/results/quality/headline.png",
    "cpu.png": "benchmarks/results/amd-epyc/cpu.png",
}
REFERENCE = {  # page -> modules whose public names it has
    "reference/dts.md": ("dts",),
    "reference/models.md": ("dts.checkpoint", "dts.adapter", "dts.exports"),
    "reference/merge.md": ("dts.merge",),
    "reference/unseen.md": ("dts.unseen", "dts.metrics"),
    "reference/kernels.md": ("dts_kernels",),
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files, config):
    """Adds the pages."""
    for place, file in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / file)))
    seen = set()  # a name stands on the first page that has it
    for place, modules in REFERENCE.items():
        files.append(File.generated(config, place, content=reference(modules, seen)))
    return files


def reference(modules: tuple[str, ...], seen: set[str]) -> str:
    """A heading a module and a directive of mkdocstrings a public function or class, by where it is defined."""
    lines = []
    for module_name in modules:
        module = importlib.import_module(module_name)
        lines += [
            f"# {module_name}" if not lines else f"## {module_name}",
            (module.__doc__ or "").partition("\n")[0],
            "",
        ]
        for name in public(module):
            thing = getattr(module, name)
            if not (inspect.isfunction(thing) or inspect.isclass(thing)):
                continue
            where = f"{thing.__module__}.{thing.__qualname__}"
            if where.startswith(("dts.", "dts_kernels.")) and where not in seen:
                seen.add(where)
                lines += [f"::: {where}", *members(thing), ""]
    return "\n".join(lines)


def members(thing) -> list[str]:
    """Options of the directive for a class that is made in several files: its own methods, then those of each file."""
    files = [one for one in getattr(thing, "__mro__", ())[1:] if one.__module__.startswith(PARTS)]
    own = [item for one in [thing, *reversed(files)] for item in vars(one).items()]
    names = [name for name, value in own if name[0] != "_" and isinstance(value, METHODS) and value.__doc__]
    return ["    options:", "      inherited_members: true", f"      members: {names}"] if files else []


def public(module) -> list[str]:
    """Its public names; of a module without a list, what is defined in it."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [name for name, thing in vars(module).items() if getattr(thing, "__module__", None) == module.__name__]


def on_page_markdown(markdown, page, config, files):
    """Turns links of the repository to links of the site."""
    place = page.file.src_uri
    folder = (ROOT / ELSEWHERE.get(place, f"docs/{place}")).parent
    places = {ROOT / file: there for there, file in ELSEWHERE.items()}
    places |= {ROOT / "docs" / file.src_uri: file.src_uri for file in files if file.src_uri not in ELSEWHERE}

    def turned(found):
        picture, text, link = found.groups()
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:|#", link):
            return found[0]
        target = Path(os.path.normpath(folder / path))
        if target in places:
            there = os.path.relpath(places[target], Path(place).parent)
            return f"{picture}[{text}]({there}{'#' * bool(anchor)}{anchor})"
        if not target.exists():
            raise PluginError(f"{place}: no file {link}")
        return text

    return _LINK.sub(turned, markdown)
