"""`dts serve`: one base and its adapters for many callers."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from dts.cli.common import Json, TrustRemoteCode, bytes_text, emit, errors, output, parse_bytes
from dts.files import expanded
from dts.serve.signals import ending

log = logging.getLogger("dts.serve")

LIMITS, OPERATIONS = "Limits", "Operations"


@ending()
def serve(
    model: Annotated[str, typer.Argument(help="The base: folder or hub id, with its tokenizer.", show_default=False)],
    adapters: Annotated[
        Path,
        typer.Option("--adapters", "-a", help="Folder that holds adapters; each is a task by its name there."),
    ],
    name: Annotated[str | None, typer.Option(help="Of the base, for callers (default: its folder's).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 8000,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto is a GPU where there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the base: auto is as it is stored.")] = "auto",
    quantised_from: Annotated[
        str | None,
        typer.Option(help="Of a quantised base: the checkpoint that it was before.", show_default=False),
    ] = None,
    pooling: Annotated[
        Literal["mean", "first", "last"], typer.Option(help="Which tokens' states an embedding is.")
    ] = "mean",
    memory: Annotated[
        str | None,
        typer.Option(
            help="Bytes that adapters take in memory, as 500MB; the least recently used go.",
            rich_help_panel=LIMITS,
            show_default="half of what is free beside the base",
        ),
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(help="A task that stays in memory; may be repeated.", rich_help_panel=LIMITS, show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows of a batch.", rich_help_panel=LIMITS)] = 32,
    batch_tokens: Annotated[
        int, typer.Option(help="Tokens of a batch, padding and answers counted.", rich_help_panel=LIMITS)
    ] = 16384,
    wait: Annotated[
        float, typer.Option(help="Milliseconds that an encoder's batch waits for more rows.", rich_help_panel=LIMITS)
    ] = 5.0,
    queue: Annotated[int, typer.Option(help="Rows that may wait; more are told 429.", rich_help_panel=LIMITS)] = 256,
    max_body: Annotated[str, typer.Option(help="Size of a request's body.", rich_help_panel=LIMITS)] = "1MB",
    max_prompt: Annotated[
        int | None,
        typer.Option(help="Tokens of a prompt.", rich_help_panel=LIMITS, show_default="as many as the model takes"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="New tokens of an answer.", rich_help_panel=LIMITS)] = 1024,
    max_rows: Annotated[int, typer.Option(help="Rows of a request: prompts, times n.", rich_help_panel=LIMITS)] = 64,
    timeout: Annotated[
        float, typer.Option(help="Seconds that a request may take, its wait included.", rich_help_panel=LIMITS)
    ] = 300,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="File with a key a line that callers must send.", rich_help_panel=OPERATIONS, show_default="no key"
        ),
    ] = None,
    admin_keys: Annotated[
        Path | None,
        typer.Option(
            help="The same for those who load and unload.", rich_help_panel=OPERATIONS, show_default="nobody may"
        ),
    ] = None,
    drain: Annotated[
        int, typer.Option(help="Seconds that answers may take after SIGTERM.", rich_help_panel=OPERATIONS)
    ] = 30,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
):
    """Serve one base and its adapters: OpenAI's routes, model= a task, the base or a mixture "a:0.7,b:0.3".

    Rows of any tasks share a batch, and join and leave it at any token.  Adapters are loaded when they are first asked
    for.  SIGTERM ends the server when what it took in is answered.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    log.info("starting: %s with the adapters in %s; it listens when the base is loaded", model, adapters)
    from dts.serve.options import Limits, Options, missing
    from dts.serve.waiting import Batching

    if absent := missing():
        raise ImportError(absent)
    from dts.serve.http.run import run

    sizes = {
        what: None if text is None else parse_bytes(text, what)
        for what, text in (("--memory", memory), ("--max-body", max_body))
    }
    options = Options(
        model,
        expanded(adapters),
        name=name,
        host=host,
        port=port,
        api_keys=api_keys and expanded(api_keys),
        admin_keys=admin_keys and expanded(admin_keys),
        memory=sizes["--memory"],
        pinned=tuple(pin or ()),
        pooling=pooling,
        device=device,
        dtype=dtype,
        quantised_from=quantised_from,
        drain=drain,
        trusted=trust_remote_code,
        batching=Batching(batch, batch_tokens, wait / 1000, queue),
        limits=Limits(sizes["--max-body"] or 0, max_prompt, max_tokens, max_rows, timeout),
    )

    def ready(tasks, most):
        result = {
            "base": options.base_name,
            "tasks": tasks,
            "address": f"http://{f'[{host}]' if ':' in host else host}:{port}",
            "memory": most,
        }
        bound = "" if most is None else f", at most {bytes_text(most)} of them in memory"
        many = f"{len(tasks)} adapter{'' if len(tasks) == 1 else 's'}" if tasks else "no adapters yet"
        text = f"{options.base_name} and {many} in {adapters}{bound}: {result['address']}"
        emit(result, as_json, lambda: output.print(text, soft_wrap=True))
        sys.stdout.flush()  # who waits for it may read a pipe

    if broken := run(options, ready):
        many = "1 request was" if broken == 1 else f"{broken} requests were"
        errors.print(f"{many} broken off, not answered in time after the signal (--drain {drain})")
        raise typer.Exit(1)
