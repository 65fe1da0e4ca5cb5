"""The project's pages, and what is in them: links, code blocks, commands."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", "docs", "docs/reference", "examples", "benchmarks/quality", "benchmarks/results/*")
PAGES = sorted({path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.md")})

_FENCE = re.compile(r"(?:<!-- run: (?P<run>[\w. ]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block.  run: what stands in a comment above it, ``<!-- run: name -->``: the test runs it, with that."""

    language: str
    text: str
    run: str | None


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    found = _FENCE.finditer(page.read_text("utf-8"))
    return [Block(one["language"], one["text"], one["run"]) for one in found]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> list[str]:
    """Targets of links and pictures that are no addresses of the web."""
    return [one for one in _LINK.findall(prose(page)) if not re.match(r"[a-z]+:", one)]


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in a link."""
    text = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", one.lower())) for one in text}


def commands(page: Path) -> list[str]:
    """Lines of shell blocks without their comments, and code in the text."""
    shell = [block.text.replace("\\\n", " ") for block in blocks(page) if block.language == "bash"]
    lines = [line for text in shell for line in text.splitlines()]
    stripped = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]
    return [one for one in stripped + spans if one]
