"""What verbs share: options, sizes as people write them, tables, progress, JSON."""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, overload

import typer
from rich.console import Console, ConsoleDimensions, ConsoleOptions
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dts.files import expanded, in_words
from dts.sizes import bytes_text as bytes_text  # verbs have them from here
from dts.sizes import parse_bytes as parse_bytes
from dts.sizes import parse_size as parse_size
from dts.warn import warn

WIDE = 4096  # characters of a line that no terminal shows
OK, CHECK_FAILED, BAD_INPUT, UNEXPECTED = 0, 1, 2, 3

_STEERING = [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_NO_TEXT = range(0xD800, 0xE000)  # bytes of a name that are no UTF-8, as Python has them, and no output takes them
_UNPRINTABLE = dict.fromkeys([*_STEERING, *_NO_TEXT], "\N{REPLACEMENT CHARACTER}")


def plain(text: str) -> str:
    """Without what a terminal obeys or shows in another order: names of files and tensors may come from anywhere."""
    return text.translate(_UNPRINTABLE)


class Terminal(Console):
    """A console on which no text steers the terminal, whatever it was made from."""

    wide = False  # in a file or a pipe, as wide as a table needs: a name that is folded is found by no search

    @property
    def size(self) -> ConsoleDimensions:
        if not self.wide or self.is_terminal or "COLUMNS" in os.environ:
            return super().size
        return ConsoleDimensions(WIDE, super().size.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def on_broken_pipe(self) -> None:
        """Whoever read this has enough: not rich's exit code 1, which says that a check failed."""
        raise BrokenPipeError

    def render(self, renderable, options=None):
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


class Errors(Terminal):
    """Of stderr: where that takes nothing (a full disk), the exit code and stdout still say what became of a call."""

    def _check_buffer(self) -> None:
        with suppress(OSError):
            super()._check_buffer()


class Dotted:
    """A tensor's name, which is broken behind a dot, a slash or a dash where it does not fit: no word of it is."""

    def __init__(self, name: str):
        self.name = name

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        pieces = [len(piece) for piece in self._pieces()]
        return Measurement(min(max(pieces, default=0), options.max_width), min(len(self.name), options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions):
        lines = [""]
        for piece in self._pieces():
            if lines[-1] and len(lines[-1]) + len(piece) > options.max_width:
                lines.append("  " if len(piece) + 2 <= options.max_width else "")
            lines[-1] += piece
        yield Text("\n".join(lines), overflow="fold")

    def _pieces(self) -> list[str]:
        return re.findall(r"[^./-]*[./-]|[^./-]+", self.name)


output = Terminal(markup=False, highlight=False)  # names and paths may hold brackets
output.wide = True
errors = Errors(stderr=True, markup=False, highlight=False)

Base = Annotated[
    str, typer.Option("--base", "-b", help="Folder, file or hub id of the base model.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision", help="Branch, tag or commit of the base's hub id; id@revision says the same.", show_default=False
    ),
]
FinetunedRevision = Annotated[
    str | None, typer.Option("--finetuned-revision", help="The same of the fine-tune's hub id.", show_default=False)
]
State = Annotated[
    str | None,
    typer.Option(
        "--state",
        help="Which state of a .pt file with several the fine-tune is; file.pt#state says the same.",
        show_default=False,
    ),
]
Only = Annotated[
    str | None,
    typer.Option(
        "--only",
        help="The part of a vision-language base, such as language_model, that the fine-tune is one of.",
        show_default=False,
    ),
]
Vocabulary = Annotated[
    str | None,
    typer.Option(
        "--vocabulary", help="shared: of a fine-tune with fewer tokens, keep the base's others.", show_default=False
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the model's own code (auto_map); look at it before."),
]
InputColumn = Annotated[
    str | None, typer.Option(help="Column of the texts (two of pairs, 'a,b') or images.", show_default=False)
]
MaxLength = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens of a text, the rest is cut; default at most 512.", show_default=False),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out already holds.")]


@overload
def at(source: str, revision: str | None) -> str: ...
@overload
def at(source: str | None, revision: str | None) -> str | None: ...
def at(source: str | None, revision: str | None) -> str | None:
    """``id`` and the revision of an option as ``id@revision``, which `open_checkpoint` takes."""
    if revision is None:
        return source
    if source is None or expanded(source).exists():
        raise ValueError(f"a revision ({revision}) is of a hub id, and {source or 'no model'} is none")
    return f"{source}@{revision}"


def of_state(source: str, state: str | None) -> str:
    """A file and the state of an option as ``file#state``, which `open_checkpoint` takes."""
    if state is None:
        return source
    if not expanded(source).is_file():
        raise ValueError(f"--state {state} is of a .pt or .bin file, and {source} is none: give the file")
    return f"{source}#{state}"


def parse_fraction(text: str) -> float:
    """``0.3`` or ``30%`` -> 0.3."""
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        raise ValueError(f"{text!r} is not a fraction: write 0.3 or 30%") from None
    if not 0 < value <= 1:
        raise ValueError(f"{text!r} is not between 0 and 1 (0% and 100%)")
    return value


def percent(value: float | None, digits: int = 2) -> str:
    """0.01234 -> ``1.23 %``; None -> a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def said(context: typer.Context) -> dict[str, str]:
    """The parameters that the command line gives, by their functions' names: the option's word, the argument's name.

    One that is given the value that it has by default is given too.
    """
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(name := str(parameter.name))
        if source is not None and source.name == "COMMANDLINE":
            word = parameter.opts[0]
            found[name] = word if word.startswith("-") else word.upper()
    return found


def list_of(text: str | None) -> list[str] | None:
    """``a, b,c`` -> [a, b, c];  ``@file`` -> its lines."""
    if text is None:
        return None
    items = _lines(expanded(text[1:])) if text.startswith("@") else text.split(",")
    if not (found := [item.strip() for item in items if item.strip()]):
        raise ValueError(f"{text!r} names nothing: write 'a, b, c', or @file with a name a line")
    if twice := sorted({name for name in found if found.count(name) > 1}):
        from dts.checkpoint.errors import some

        raise ValueError(f"{some(twice)} is named more than once: give each name once")
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8-sig").split("\n")  # an editor's mark of UTF-8 is of no name
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason}, byte {error.start}): convert it") from None


def emit(result: Any, as_json: bool, show: Callable[[], None]) -> None:
    """The result as JSON (what is no finite number is null: JSON has none), or shown to a person."""
    if as_json:
        unicode = (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")
        text = json.dumps(finite(result), indent=2, ensure_ascii=not unicode, allow_nan=False)
        print("".join(f"\\u{ord(c):04x}" if ord(c) in _UNPRINTABLE else c for c in text))
    else:
        show()


def finite(value: Any) -> Any:
    """Plain data without NaN and infinite numbers, which are None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def message_of(error: Exception) -> str:
    """An exception's own words (a KeyError's str() would be quoted)."""
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0])
    if isinstance(error, OSError):
        return in_words(error)
    return str(error) or type(error).__name__


def foretell(dry_run: bool, check: Callable[[], None]) -> None:
    """Of a dry run: what would keep it from being written is said. It stops nothing, as sizes may be asked of any."""
    if dry_run:
        try:
            check()
        except OSError as error:
            warn(f"without --dry-run nothing would be written: {in_words(error)}")


def counts_text(account: dict) -> str:
    """What became of the tensors, of `Account.as_dict`, in a line a model: "base: 12 changed, 3 equal"."""
    return "\n".join(
        f"{model}: {', '.join(f'{n} {what}' for what, n in counts.items())}"
        for model, counts in account["counts"].items()
    )


def listing(title: str | None, first: str, *rest: str, text: tuple[str, ...] = ()) -> Table:
    """A table without frames that fits a narrow terminal: ``first`` and ``text`` fold, the rest are numbers."""
    table = Table(title=title, title_justify="left", title_style="italic", box=None, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for column in rest:
        table.add_column(column, justify="left" if column in text else "right", overflow="fold")
    return table


def pairs(title: str | None, rows: dict[str, Any]) -> Table:
    """A table of two columns: what, and its value."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


@contextmanager
def progress_bar(what: str, in_bytes: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with the time left, on stderr; yields ``progress(done, total, name)``."""
    count = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        count,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}", style="dim", markup=False),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(what, total=None, name="")

        def update(done: int, total: int, name: str = "") -> None:
            bar.update(task, completed=done, total=total, name=name)

        yield update
