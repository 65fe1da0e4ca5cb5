"""A base and a full fine-tune in, an adapter out."""

from contextlib import nullcontext
from pathlib import Path

from dts.adapter.accounting import of_pairing
from dts.adapter.adapter import Adapter
from dts.adapter.budget import BudgetError
from dts.adapter.code import OtherCode, other_code
from dts.adapter.config import config_of
from dts.adapter.errors import NothingChanged, Suspicious
from dts.adapter.exact import ExactRun
from dts.adapter.folder import check_out, check_writable, write_folder
from dts.adapter.options import Options
from dts.adapter.route import InputStatistics
from dts.adapter.run import Progress, Run
from dts.adapter.suspicion import not_numbers, other_classes
from dts.adapter.tokenizer import differing_files
from dts.adapter.work import work_of
from dts.checkpoint import Checkpoint, OtherDtype, digests, dtype_note, fingerprint, open_checkpoint, pair
from dts.checkpoint.errors import PartLost
from dts.checkpoint.fitted import fitted
from dts.checkpoint.part import lost_note
from dts.codec import Unencodable
from dts.codec.frames import zstd
from dts.files import Changed, Watch, building, check_free, expanded
from dts.warn import warn

LEFT = 0.5  # *measured*: MiniLM over int4, .94 of the difference left is worse than no repair, .18 three times as close


class NotRepaired(UserWarning):
    """An adapter made for a quantised base has too few bytes for what quantisation changed."""


def compress(
    base,
    finetuned,
    out: str | Path | None = None,
    method: str = "auto",
    budget: float | None = None,
    nbytes: int | None = None,
    rank_fraction: float | None = None,
    target_error: float | None = None,
    vectors: str = "auto",
    kind: str = "task",
    base_is: str = "plain",
    name: str | None = None,
    class_names: list[str] | None = None,
    description: str | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    device=None,
    seed: int = 0,
    command: str | None = None,
    allow_empty: bool = False,
    only: str | None = None,
    vocabulary: str | None = None,
    inputs: InputStatistics | None = None,
) -> Adapter:
    """Stores a fine-tune as its difference to the base.

    base, finetuned: anything `open_checkpoint` takes
    out: the adapter's folder, written whole or not at all; None keeps the adapter in memory
    method: "residual", "paper" (arXiv 2512.01461), "sketch" (`dts.codec.sketch`), or "auto": "sketch" where bytes are
        asked for and the fine-tune is near the base (`dts.codec.auto`), else "residual";  "exact" (`dts.codec.exact`)
        loses no bit and takes no size: every tensor of what the adapter gives is the fine-tune's, bit for bit
    At most one size, of the whole folder, heads and headers included; by default budget=0.01:
        budget: at most this fraction of the bytes of the base in fp32;  nbytes: at most these bytes
        rank_fraction: rank int(r * min(m, n)) in every matrix; of "sketch" the bytes of that rank
        target_error: squared relative error of the whole difference, with as few bytes as were found to do; not of
            "sketch", which is not about that error
    vectors: of biases and norms, "exact" differences or "8bit", "4bit", "3bit" ones, heads being exact or in 8 bits
        then (`dts.adapter.vectors`); "auto" rounds where bytes are asked for and the method is not "paper", the more
        the fewer they are: they are better spent on the matrices
    kind: "task" if the base is what the fine-tune started from, "difference" if it is a merged model
    base_is: "plain", or "quantised" (of a base in memory, a folder, a hub id, a GGUF file): the difference is then to
        the numbers that its codes stand for, so that the adapter repairs what quantisation changed too
    name, class_names, description: of the task; names default to the fine-tune's folder and its config's labels
    progress: called with (done, total, tensor's name), in bytes of the fine-tune read
    resume: continue an interrupted run of the same options into ``out``
    overwrite: replace an adapter at ``out``, once the new one is whole
    dry_run: write nothing; the adapter returned has the planned ranks, bytes and predicted errors, no content, and
        its ``prediction`` the errors' bounds
    device: where to compute: the CPU (None), "cuda", "cuda:1", or "auto", a GPU where there is one; the same seed gives
        the same bytes on devices of one model
    seed: of all random choices;  command: noted in the adapter
    allow_empty: make an adapter of a fine-tune that equals its base too
    only: the part of the base, such as "language_model", that the fine-tune is one of; all else stays the base's
    vocabulary: "shared" keeps the base's rows of an embedding beyond those of a fine-tune that has fewer
    inputs: what a router is to know of the task's inputs (`dts.unseen.input_statistics`); its bytes count

    The adapter's ``account`` says what became of every tensor of both models.
    Warns (`Suspicious`) of models that look unrelated or exchanged, and (`NotRepaired`) where a quantised base leaves
    too much to be repaired by so few bytes.
    Raises NothingChanged for a fine-tune whose tensors are all the base's, Mismatch (all that does not fit between
    the models), BudgetError (with the smallest possible size),
    Unencodable (NaN and infinite elements, with the tensor's name), FileExistsError, OSError (no space left).
    """
    options = Options(
        method=method,
        budget=budget,
        nbytes=nbytes,
        rank_fraction=rank_fraction,
        target_error=target_error,
        vectors=vectors,
        kind=kind,
        base_is=base_is,
        name=name,
        class_names=class_names,
        description=description,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        device=device,
        seed=seed,
        command=command,
        allow_empty=allow_empty,
        only=only,
        vocabulary=vocabulary,
        inputs=inputs,
    )
    return _compressed(base, finetuned, None if out is None else expanded(out), options, progress)


def _compressed(base, finetuned, out: Path | None, options: Options, progress: Progress | None) -> Adapter:
    """`compress`, of its options."""
    if options.exact:
        zstd()  # where it is missing, nothing is begun
    written = None if options.dry_run else out
    if written is not None:
        check_out(written, options.overwrite)
        check_free(written)
    watch = Watch(base, finetuned)
    given = finetuned
    base, finetuned = opened_base(base, options.base_is), open_checkpoint(finetuned)
    watch.also(base.folder, finetuned.folder)  # of a trainer's run, the checkpoint inside it
    pairing = pair(base, fitted(base, finetuned, options.only, options.vocabulary))
    if note := lost_note(pairing.base, pairing.finetuned, pairing.base_only):
        warn(note, PartLost)
    if note := other_code(pairing.base, pairing.finetuned):
        warn(note, OtherCode)
    if pairing.base.quantised is None and not options.exact and (note := dtype_note(pairing.base, pairing.finetuned)):
        warn(note, OtherDtype)
    if given is not finetuned and (note := other_classes(pairing, options.class_names)):  # a mixture's are its own
        warn(note, Suspicious)
    base_digests = digests(pairing.base)
    files = differing_files(pairing.base.folder, pairing.finetuned.folder)
    config = config_of(pairing, options, base_digests, files)
    # before hours of work; which method a rule takes is not known yet
    check_writable(config | {"method": options.choice.name if options.exact else options.choice.for_distance(0.0).name})
    recorded = options.recorded(config["base"]["fingerprint"], fingerprint(pairing.finetuned))
    with _place(written, options) as place:
        work = work_of(place, recorded, config)
        try:
            run: Run | ExactRun
            if options.exact:
                run = ExactRun(pairing, config, base_digests, options, progress)
            else:
                run = Run(pairing, config, base_digests, options, work, progress)
            adapter = Adapter.of(config, run.made(), files=files)
            adapter.inputs = options.inputs
            adapter.prediction = run.prediction
            _look_at_repair(adapter, pairing.base)
            adapter.account = of_pairing(pairing, adapter.entries, config["dropped"], run.equal)
            watch.check()
            if written is not None:
                write_folder(adapter, written, options.overwrite, place)
        except Unencodable as error:
            work.clear()
            raise Unencodable(f"{error}{not_numbers(pairing)}") from error
        except (BudgetError, NothingChanged, Changed):  # the same run would fail again
            work.clear()
            raise
    return adapter


def opened_base(base, base_is: str) -> Checkpoint:
    """base: as `compress` takes it;  base_is: one of `BASES`.  Raises ValueError where it is not what was said."""
    if base_is == "plain":
        return open_checkpoint(base)
    opened = open_checkpoint(base, dequantise=True)
    if opened.quantised is None:
        raise ValueError(f"{opened.source} is not quantised: leave base_is (--base-is) out")
    return opened


def _look_at_repair(adapter: Adapter, base: Checkpoint) -> None:
    """Warns where most of a difference stays that quantisation made large: bytes were taken from the task for it."""
    left = adapter.config["squared_error"]
    if base.quantised is not None and left is not None and left > LEFT:
        warn(
            f"{adapter.name} leaves {left:.0%} of its difference to the quantised base, most of which is what "
            "quantisation changed: give it more bytes, or compress against the base as it was and run that adapter "
            "over the quantised one, which needs fewer",
            NotRepaired,
        )


def _place(out: Path | None, options: Options):
    """Where the folder is built; nowhere if nothing is written."""
    if out is None:
        return nullcontext()
    return building(out, lambda: check_out(out, options.overwrite), True, options.resume)
