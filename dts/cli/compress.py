"""`dts compress`: a base and full fine-tunes of it in, an adapter each out."""

from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dts.cli.common import (
    FinetunedRevision,
    Json,
    Only,
    Overwrite,
    Resume,
    Revision,
    State,
    TrustRemoteCode,
    Vocabulary,
    at,
    emit,
    foretell,
    list_of,
    of_state,
    output,
    pairs,
    parse_bytes,
    parse_fraction,
    parse_size,
    progress_bar,
    said,
)
from dts.cli.compressed import show
from dts.cli.inspect import account_of, summary
from dts.cli.names import named
from dts.cli.route import statistics, tokenizer_of
from dts.cli.several import follow, recipe_of
from dts.files import expanded

if TYPE_CHECKING:
    from dts.ray.cluster import Cluster

DEFAULT_SIZE = "1%"
RAY = "Ray"


class Vectors(StrEnum):
    auto = "auto"
    exact = "exact"
    eight_bit = "8bit"
    four_bit = "4bit"
    three_bit = "3bit"


class Kind(StrEnum):
    task = "task"
    difference = "difference"


class BaseIs(StrEnum):
    plain = "plain"
    quantised = "quantised"


def compress(
    context: typer.Context,
    base: Annotated[
        str | None, typer.Argument(help="Folder, file or hub id of the base model.", show_default=False)
    ] = None,
    finetuned: Annotated[
        list[str] | None, typer.Argument(help="One or more full fine-tunes of it.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Where the adapter goes; with several fine-tunes, the folder of all of them.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-s",
            help=f"Bytes of the whole adapter: 1% (of the base in fp32), 500KB, 5MB.  Default {DEFAULT_SIZE}.",
            show_default=False,
        ),
    ] = None,
    rank_fraction: Annotated[
        str | None,
        typer.Option(
            help="Instead of a size: the same share of the rank of every matrix, 0.3 or 30%.", show_default=False
        ),
    ] = None,
    target_error: Annotated[
        str | None,
        typer.Option(help="Instead of a size: the squared relative error to reach, 0.1 or 10%.", show_default=False),
    ] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="How a difference is stored, see --methods.")] = "auto",
    methods: Annotated[bool, typer.Option("--methods", help="List the methods.")] = False,
    vectors: Annotated[
        Vectors,
        typer.Option(
            help="Biases and norms: exact, or rounded to so many bits, heads to 8 then.  auto: with a "
            "--budget, as its bytes are few or many; the matrices need them more."
        ),
    ] = Vectors.auto,
    kind: Annotated[
        Kind, typer.Option(help="task: the base is the pretrained model.  difference: it is a merged one.")
    ] = Kind.task,
    base_is: Annotated[
        BaseIs,
        typer.Option(
            help="quantised: take the difference to the numbers that a quantised base's codes stand for; the adapter "
            "then repairs what quantisation changed too."
        ),
    ] = BaseIs.plain,
    name: Annotated[
        str | None, typer.Option(help="Name of the task; default the fine-tune's folder name.", show_default=False)
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(
            help="Names of its classes, 'a, b, c' or @file with one a line; default from its config.",
            show_default=False,
        ),
    ] = None,
    description: Annotated[str | None, typer.Option(help="A sentence on what it does.", show_default=False)] = None,
    merge: Annotated[
        str | None,
        typer.Option(
            help="With --kind difference: merge the fine-tunes by this method (see "
            "dts merge --methods) and write out/base and out/adapters; the base may then be 'none'.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="A YAML file that names base, out and many fine-tunes with their options, instead of all that; "
            "what is there already is left as it is, so the same command goes on after an interruption.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="With --config: processes at a time.")] = 1,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Make each adapter in a task of Ray; one that fails stops no other, and the same command goes on with "
            "those that are not there.",
            rich_help_panel=RAY,
        ),
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="A Ray that runs: auto, host:6379, ray://host:10001; --ray goes without saying.",
            rich_help_panel=RAY,
            show_default="RAY_ADDRESS, or one of its own on this machine",
        ),
    ] = None,
    task_cpus: Annotated[
        float, typer.Option(help="Cores that a task takes; by them Ray counts.", rich_help_panel=RAY)
    ] = 1,
    task_memory: Annotated[
        str | None,
        typer.Option(help="The same of memory, as 4GB.", rich_help_panel=RAY, show_default="not counted"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to compute: cpu (default), cuda, cuda:1, or auto: a GPU where there is one.", show_default=False
        ),
    ] = None,
    revision: Revision = None,
    finetuned_revision: FinetunedRevision = None,
    state: State = None,
    only: Only = None,
    vocabulary: Vocabulary = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    route_with: Annotated[
        str | None,
        typer.Option(
            "--route-with",
            help="A file of some 64 unlabelled inputs of the task (see dts route), by which the task of an input is "
            "found; a few KB, which count.",
            show_default=False,
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Make an adapter of a fine-tune that equals its base too.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write nothing: predict the bytes and the error, with its bounds, from the singular values.",
        ),
    ] = False,
    tensors: Annotated[
        bool, typer.Option("--tensors", "-t", help="With --dry-run: list every compressed tensor.")
    ] = False,
    as_json: Json = False,
):
    """Turn full fine-tunes into adapters of about 1 % of the model."""
    if methods:
        return emit(_methods(), as_json, _show_methods)
    cluster = _cluster(ray, ray_address, task_cpus, task_memory)
    if cluster is not None and jobs != 1:
        raise ValueError(
            "--jobs is of processes on this machine: with --ray, --task-cpus says how many tasks run at once"
        )
    if config is not None:
        from dts.cli.recipe import read_recipe

        _refuse_beside_config(context)
        return follow(context, read_recipe(config, out), jobs, overwrite, dry_run, as_json, cluster)
    if jobs != 1:
        raise ValueError("--jobs goes with --config, which names many fine-tunes")
    if base is None or not finetuned or out is None:
        absent = [what for what, value in (("BASE", base), ("FINE-TUNES", finetuned), ("--out", out)) if not value]
        raise ValueError(
            f"{' and '.join(absent)} missing: dts compress BASE FINE-TUNES... --out FOLDER, or --config FILE; "
            "--methods lists the methods"
        )
    import dts
    from dts.adapter.folder import check_out

    base = at(base, revision)
    finetuned = [of_state(at(source, finetuned_revision), state) for source in finetuned]
    how = _how(size, rank_fraction, target_error, method) | {"device": device}
    if tensors and not dry_run:
        raise ValueError("--tensors goes with --dry-run; of an adapter that is there, dts inspect --tensors lists them")
    if len(finetuned) > 1 and (name or class_names or description):
        raise ValueError("--name, --class-names and --description are of one task: compress the fine-tunes one by one")
    if trust_remote_code and not route_with:
        raise ValueError("--trust-remote-code goes with --route-with, which runs the base; to compress, no code is run")
    if merge and (only or vocabulary or route_with):
        raise ValueError(
            "--only, --vocabulary and --route-with do not go with --merge: dts compress each fine-tune, or "
            "dts merge them"
        )
    if merge:
        if cluster is not None:
            raise ValueError("--ray does not go with --merge, which makes one base of all of them")
        if base_is is not BaseIs.plain:
            raise ValueError("--merge makes a base of its own: --base-is is of a base that there is")
        how["allow_empty"] = allow_empty
        results = _merged(base, finetuned, out, merge, method, vectors, kind, how, resume or dry_run or overwrite)
        return emit(results, as_json, lambda: show(results))
    if cluster is not None:
        if tensors or name or class_names or description or route_with:
            raise ValueError(
                "--tensors, --name, --class-names, --description and --route-with do not go with --ray: say what "
                "--config has there, and dts route the adapters"
            )
        how |= {"method": method, "vectors": vectors.value, "kind": kind.value, "base_is": base_is.value}
        how |= {"allow_empty": allow_empty, "only": only, "vocabulary": vocabulary}
        recipe = recipe_of(base, named(finetuned), out, how)
        return follow(context, recipe, 1, overwrite, dry_run, as_json, cluster)
    if route_with and len(finetuned) > 1:
        raise ValueError("--route-with is of one task: compress the fine-tunes one by one, or dts route each adapter")
    known = None
    if route_with:
        known = statistics(base, route_with, tokenizer=tokenizer_of(finetuned[0]), trusted=trust_remote_code)
    results = []
    for task, source in named(finetuned).items():
        folder = out / task if len(finetuned) > 1 else out
        foretell(dry_run, partial(check_out, expanded(folder), overwrite))
        with progress_bar(f"{'Predicting' if dry_run else 'Compressing'} {source}", in_bytes=True) as progress:
            adapter = dts.compress(
                base,
                source,
                out=folder,
                method=method,
                vectors=vectors.value,
                kind=kind.value,
                base_is=base_is.value,
                name=name or (task if len(finetuned) > 1 else None),
                class_names=list_of(class_names),
                description=description,
                resume=resume,
                overwrite=overwrite,
                dry_run=dry_run,
                progress=progress,
                allow_empty=allow_empty,
                only=only,
                vocabulary=vocabulary,
                inputs=known,
                **how,
            )
        results.append(summary(adapter) | {"folder": str(folder), "written": not dry_run} | account_of(adapter))
        if dry_run:
            results[-1]["predicted"] = adapter.prediction and asdict(adapter.prediction)
    emit(results[0] if len(results) == 1 else results, as_json, lambda: show(results, tensors))


def _methods() -> list[dict]:
    from dts.codec.methods import CHOICES

    return [{"name": choice.name, "about": choice.about} for choice in CHOICES.values()]


def _show_methods():
    output.print(pairs(None, {row["name"]: row["about"] for row in _methods()}))


def _refuse_beside_config(context: typer.Context) -> None:
    """What the file says is said there."""
    mine = ["out", "config", "jobs", "overwrite", "dry_run", "resume", "as_json", "methods"]
    mine += ["ray", "ray_address", "task_cpus", "task_memory"]
    given = [word for name, word in said(context).items() if name not in mine]
    if given:
        raise ValueError(f"--config says what is compressed and how: move {', '.join(given)} into the file")


def _cluster(ray: bool, address: str | None, cpus: float, memory: str | None) -> "Cluster | None":
    """None: no Ray is asked for."""
    if not ray and address is None:
        if cpus != 1 or memory is not None:
            raise ValueError("--task-cpus and --task-memory are of tasks of --ray")
        return None
    from dts.ray.cluster import Cluster, ray_itself

    ray_itself()
    return Cluster(address, cpus, None if memory is None else parse_bytes(memory, "--task-memory"))


def _how(size: str | None, rank_fraction: str | None, target_error: str | None, method: str) -> dict[str, Any]:
    """The one size asked for, as a keyword of `dts.compress`; of the method "exact" only one that was given."""
    asked = {"budget": size, "rank-fraction": rank_fraction, "target-error": target_error}
    given = [f"--{option}" for option, value in asked.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} say the size twice: keep one")
    if rank_fraction is not None:
        return {"rank_fraction": parse_fraction(rank_fraction)}
    if target_error is not None:
        return {"target_error": parse_fraction(target_error)}
    if size is None and method == "exact":
        return {}
    return parse_size(DEFAULT_SIZE if size is None else size)


def _merged(base, finetuned, out, merge, method, vectors, kind, how, other: bool) -> list[dict]:
    """Merge, and compress each fine-tune's difference to the merged base."""
    from dts.merge import compress_difference

    if kind is not Kind.difference:
        raise ValueError("--merge makes difference vectors: say --kind difference as well")
    if other:
        raise ValueError(
            "--dry-run, --resume and --overwrite do not go with --merge: run dts merge, then dts compress "
            "--kind difference against the merged model"
        )
    with progress_bar(f"Merging by {merge}, compressing") as progress:
        _, adapters = compress_difference(
            None if base.lower() == "none" else base,
            named(finetuned),
            merge,
            out,
            progress=progress,
            codec=method,
            vectors=vectors.value,
            **how,
        )
    return [summary(adapter) | {"written": True} | account_of(adapter) for adapter in adapters.values()]
