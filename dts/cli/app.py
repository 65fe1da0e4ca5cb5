"""`dts <verb>`: the list of verbs, and what becomes of errors."""

import json
import os
import signal
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Annotated

import typer
from rich.panel import Panel
from typer.core import TyperGroup

from dts import __version__
from dts.cli import (
    apply,
    bench,
    compress,
    demo,
    diff,
    doctor,
    evaluate,
    export,
    imports,
    inspect,
    merge,
    mix,
    plan,
    route,
    serve,
    shelf,
    truncate,
    verify,
)
from dts.cli.common import BAD_INPUT, UNEXPECTED, errors, message_of

EPILOG = (
    "Sizes are written 1%, 0.5MB or 200KiB.  Exit codes: 0 done, 1 a check failed, 2 bad input, 3 unexpected error, "
    "130 interrupted.  "
    "--debug, with any verb, shows the traceback of an error."
)
DEBUG = ("--debug", "--traceback")  # two words for one thing, the second of earlier versions
PIPE_CLOSED, INTERRUPTED = 128 + 13, 130  # as a shell has them
NO_MEMORY = "not enough memory ({}): end other programs, take a smaller model, or see what it needs with dts plan"
_BAD_INPUT = (ValueError, LookupError, OSError, ImportError, NotImplementedError)


class Verbs(TyperGroup):
    """Turns an exception into one readable panel on stderr (and JSON on stdout where asked) and an exit code."""

    def main(self, args=None, *more, **rest):
        args = list(sys.argv[1:] if args is None else args)
        self.debug = any(word in args for word in DEBUG)
        self.json = "--json" in args
        self.empty = _empty(args)
        return super().main([word for word in args if word not in DEBUG], *more, **rest)

    def make_context(self, *args, **extra):
        try:
            return super().make_context(*args, **extra)
        except Exception as error:  # wrong usage before any verb
            self._as_json(error)
            raise

    def invoke(self, context):
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: errors.print(f"Warning: {message}", soft_wrap=True)
                _here()
                if self.empty:
                    raise ValueError(f"{', '.join(self.empty)}: nothing is said there; leave it out, or give a value")
                return super().invoke(context)
        except BrokenPipeError:
            raise SystemExit(PIPE_CLOSED) from None
        except typer.Abort:
            raise
        except KeyboardInterrupt:
            errors.print("Interrupted")
            raise
        except Exception as error:
            if hasattr(error, "exit_code"):  # typer's own: Exit, wrong usage
                self._as_json(error)
                raise
            if _no_memory(error):
                error = MemoryError(NO_MEMORY.format(next(iter(str(error).splitlines()), "") or "none was left"))
                self._report(error, BAD_INPUT)
            code = BAD_INPUT if isinstance(error, _BAD_INPUT) else UNEXPECTED
            self._report(error, getattr(error, "cli_code", code))

    def _as_json(self, error: Exception):
        if self.json and hasattr(error, "format_message"):
            print(json.dumps({"error": error.format_message(), "exit_code": getattr(error, "exit_code", BAD_INPUT)}))

    def _report(self, error: Exception, code: int):
        message = message_of(error)
        if self.debug:
            traceback.print_exc()
        title = "Error" if code != UNEXPECTED else f"Unexpected {type(error).__name__} (--debug shows where)"
        errors.print(Panel(message, title=title, title_align="left", border_style="red"))
        if self.json:
            with suppress(OSError):  # of a full disk, perhaps the very error; stderr has it
                print(json.dumps({"error": message, "exit_code": code}), flush=True)
        raise typer.Exit(code) from error


def _no_memory(error: Exception) -> bool:
    """Without importing PyTorch, where it is not what there was no room for."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from dts.devices import no_memory

    return no_memory(error)


def _here() -> None:
    """Raises FileNotFoundError where the folder that one is in was removed: libraries end the process there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise FileNotFoundError("the folder that this runs in is not there any more: go to another one") from None


def _empty(args: list[str]) -> list[str]:
    """What has a text without a letter for its value: a variable that a script did not set, which as a path would be
    the folder that one is in."""
    found = []
    for before, word in zip(["", *args], args):
        if word.startswith("--") and "=" in word:
            before, _, word = word.partition("=")
        if not word.strip():
            found.append(before if before.startswith("-") and before != "--" else f"an argument, {word!r}")
    return found


app = typer.Typer(
    cls=Verbs,
    name="dts",
    help="One base model, many fine-tunes: each stored as a 2-bit difference of about 1 % of its size.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool):
    if asked:
        print(f"dts {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
):
    pass


for verb in (compress, inspect, verify, diff, apply, truncate, merge, mix, route, plan, serve, doctor, demo):
    name = verb.__name__.rpartition(".")[2]
    app.command(name)(getattr(verb, name))
# by other names than their functions, which would hide Python's own
app.command("eval")(evaluate.evaluate)
app.command("list")(shelf.shelf)
app.add_typer(bench.bench, name="bench")
app.add_typer(export.export, name="export")
app.add_typer(imports.imports, name="import")


def main():
    """The `dts` script."""
    # before torch is imported: threads that spin while they wait make compression several times slower as soon as
    # another program uses a core
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _standard()
    signal.signal(signal.SIGTERM, _terminated)
    if sys.stdout is None:  # closed, as by >&-
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lasts
    if hasattr(sys.stdout, "reconfigure"):  # a letter that the terminal's encoding lacks is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="dts")
    except SystemExit as done:
        sys.exit(_flushed(done.code))
    except BrokenPipeError:
        sys.exit(_flushed(PIPE_CLOSED))
    except KeyboardInterrupt:  # while a verb's own modules were being imported, or what it had begun was removed
        sys.exit(_flushed(INTERRUPTED))


def _standard() -> None:
    """No file gets the number of a standard stream that is closed (``2>&-``): what libraries write there would be in
    it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _terminated(number, frame):
    """Asked to end: as after Ctrl-C, what was begun is removed first."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _flushed(code):
    """The exit code, or quietly that of a reader of ours that went away (`dts inspect ... | head`)."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = PIPE_CLOSED
    except (OSError, ValueError) as error:
        errors.print(f"the output could not be written: {error}")
        code = code or BAD_INPUT
    else:
        return code
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's own last flush is quiet
    return code
