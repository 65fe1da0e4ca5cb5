"""The comparison: the fine-tune first, then the base, then each adapter, on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import dts
from dts.checkpoint import Checkpoint
from dts.checkpoint.errors import first_line
from dts.evaluate import inputs, models, words
from dts.evaluate.data import Examples, label_ids
from dts.evaluate.inputs import Batch, Batches
from dts.evaluate.scores import Reference, Score, score, stride_of
from dts.files import real
from dts.integrations.positions import positions
from dts.unseen.names import is_opaque, readable

MADE_UP = {models.TEXT: 256, models.IMAGES: 64, models.LANGUAGE: 64}
BATCH_BYTES = 1 << 29  # of a language model's logits of one batch
Step = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Setting:
    """How models are run.  batch: rows;  longest: tokens of a text;  dtype: None for the fine-tune's own.

    trusted: code of the models' own may run (``trust_remote_code``);  part: that the fine-tune is of the base, or the
    base of the fine-tune, as ``only`` of `dts.compress`.
    """

    batch: int = 16
    longest: int | None = None
    dtype: torch.dtype | None = None
    device: str = "cpu"
    tokenizer: str | None = None
    classes: Sequence[str] | None = None
    made_up: int | None = None
    seed: int = 0
    trusted: bool = False
    part: str | None = None


def evaluate(
    base: str,
    finetuned: str,
    adapters: Sequence[str],
    examples: Examples | None = None,
    setting: Setting = Setting(),
    progress: Step = lambda done, total, name: None,
) -> dict:
    """Base, fine-tune and adapters on the same inputs, as plain data.

    base, finetuned: folders or hub ids of transformers models;  adapters: folders of adapters of this base;
    examples: see `dts.evaluate.read`; None for made-up inputs.
    Agreement and KL are with the fine-tune's answers; accuracy, or a language model's perplexity, is of labelled data.
    Raises ValueError naming what does not fit.
    """
    if not adapters:
        raise ValueError("give an adapter, or several: dts compress makes them, dts list shows those of a folder")
    tuned, ground = models.opened(finetuned, "fine-tune"), models.opened(base, "base")
    kind = models.kind_of(tuned, setting.part)
    models.check_part(ground, tuned, setting.part)
    loaded = {name: dts.Adapter.load(folder) for name, folder in _names(adapters).items()}
    for adapter in loaded.values():
        adapter.on(ground)  # refuses another base, before minutes of work
    dtype = setting.dtype or tuned.main_dtype
    total, done = 2 + len(loaded), 0

    model = models.finetuned_model(tuned, kind, dtype, setting.device, setting.trusted)
    names = _class_names(model.config, setting.classes, finetuned, kind)
    if kind is not models.LANGUAGE:
        _refuse_others(loaded, names, finetuned)
    examples = examples or inputs.made_up(
        model.config, kind is models.IMAGES, setting.made_up or MADE_UP[kind], setting.seed
    )
    batches = _batches(examples, kind, model, tuned, ground, setting)
    answers = _answers(kind, names, examples, setting.device)
    stride = stride_of(_places(batches, kind), len(names))
    reference = Reference(stride)

    def run(forward, name: str, fill: bool = False) -> Score:
        nonlocal done
        rows, whole = 0, total * len(batches.rows)

        def step(count: int) -> None:
            nonlocal rows
            rows += count
            progress(done * len(batches.rows) + rows, whole, name)

        found = score(partial(_logits, forward, setting.device), batches, answers, reference, fill, step)
        done += 1
        return found

    rows = [_row(finetuned, "fine-tune", run(model, "fine-tune", True), tuned.nbytes)]
    del model
    host = models.served(ground, list(loaded.values()), dtype, setting.device, setting.trusted)
    host.set_task(models.BASE if models.BASE in host.tasks else dts.BASE)
    rows.append(_base_row(base, ground, lambda: run(host, "base")))
    done = 2
    count = "tokens" if kind is models.LANGUAGE else "inputs"
    for name, adapter in loaded.items():
        with models.quiet():
            host.load_task("adapter", adapter)
        host.set_task("adapter")
        found = run(host, name)
        host.delete_task("adapter")
        row = _row(name, "adapter", found, adapter.nbytes) | {"amr": adapter.amr, "folder": str(adapter.folder)}
        row["verdict"] = words.verdict(found.agreement or 0.0, found.places, count, examples.made_up)
        rows.append(row)
    return {
        "kind": kind,
        "inputs": {
            "source": examples.source,
            "made_up": examples.made_up,
            "count": len(examples.inputs),
            "of": examples.total,
            "columns": examples.columns,
            "labelled": rows[0]["accuracy"] is not None,
        },
        "classes": len(names),
        "dtype": str(dtype).removeprefix("torch."),
        "device": setting.device,
        "models": rows,
    }


def _names(adapters: Sequence[str]) -> dict[str, str]:
    """{name for the table: folder}: the folder's own name, more of its path where two have the same."""
    found: dict[str, str] = {}
    own = [real(folder).name for folder in adapters]
    for folder, name in zip(adapters, own):
        name = name if own.count(name) == 1 else str(folder)
        if name in found:
            raise ValueError(f"{folder} is given twice")
        found[name] = folder
    return found


def _refuse_others(adapters: Mapping[str, dts.Adapter], classes: Sequence[str], finetuned: str) -> None:
    """Raises ValueError naming every adapter whose classes are not the fine-tune's, one by one: another number of them,
    or names that stand at other places, or not one of them.  Single names may be spelled otherwise."""
    wrong = []
    for name, adapter in adapters.items():
        # without names a config has numbers of classes, of which only how many there are can be compared
        own = adapter.class_names or list(map(str, (adapter.model_config or {}).get("id2label") or ()))
        if own and len(own) != len(classes):
            wrong.append(f"{name} has {len(own)} classes")
        elif own and not any(map(is_opaque, (*own, *classes))):
            mine, theirs = ([readable(one) for one in names] for names in (own, classes))
            if any(a != b and a in theirs for a, b in zip(mine, theirs)):
                wrong.append(f"{name} has its classes in another order ({', '.join(own)})")
            elif not set(mine) & set(theirs):
                wrong.append(f"{name} has other classes ({', '.join(own)})")
    if wrong:
        named = f" ({', '.join(classes)}; --classes says what they are, in its order)" if len(classes) <= 10 else ""
        raise ValueError(f"{'; '.join(wrong)}; the fine-tune {finetuned} has {len(classes)}{named}: not of its task")


def _class_names(config: Any, given: Sequence[str] | None, finetuned: str, kind: str) -> Sequence[str]:
    """Names of the classes, or a number of them for a language model's vocabulary."""
    if kind is models.LANGUAGE:
        if given is not None:
            raise ValueError(f"--classes are of a classifier, and {finetuned} is a language model: leave them out")
        return range(config.get_text_config().vocab_size)  # type: ignore[return-value]
    if config.num_labels < 2:
        raise ValueError(f"{finetuned} has {config.num_labels} output, a number: dts eval compares classifiers")
    if given is not None and len(given) != config.num_labels:
        raise ValueError(f"--classes names {len(given)}, {finetuned} has {config.num_labels} outputs")
    return given or [str(config.id2label[i]) for i in range(config.num_labels)]


def _batches(
    examples: Examples, kind: str, model: Any, tuned: Checkpoint, ground: Checkpoint, setting: Setting
) -> Batches:
    config = model.config
    if kind is models.IMAGES:
        if setting.longest is not None:
            raise ValueError(f"--max-length is of texts, and {tuned.source} is a model of images: leave it out")
        if examples.made_up:
            return Batches([{"image": image} for image in examples.inputs], setting.batch, None, torch.stack)
        if examples.columns.get("text") != "image":
            raise ValueError(
                f"{examples.source}: {tuned.source} is a model of images, which are read from the files that a column "
                "named image has; write one"
            )
        processor = models.image_processor_of(setting.tokenizer, tuned.folder, trusted=setting.trusted)
        rows = [{"image": image} for image in examples.inputs]
        return Batches(rows, setting.batch, None, inputs.pixels_of(processor))
    places = (setting.tokenizer,) if setting.tokenizer else (tuned.folder, ground.folder)
    if setting.tokenizer and not examples.made_up and isinstance(examples.inputs[0], list | dict):
        raise ValueError(f"--tokenizer reads texts, and {examples.source} has token ids: leave it out")
    tokenizer = partial(models.tokenizer_of, *places, trusted=setting.trusted)
    rows = inputs.encoded(examples, tokenizer, config, setting.longest, positions(model))
    if kind is models.LANGUAGE:
        rows = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows if len(row["input_ids"]) > 1]
        if not rows:
            raise ValueError(f"{examples.source}: no text has two tokens, so there is nothing to predict")
        longest = max(len(row["input_ids"]) for row in rows)
        fitting = BATCH_BYTES // (4 * longest * config.get_text_config().vocab_size)
        return Batches(rows, max(1, min(setting.batch, fitting)), 0)
    return Batches(rows, setting.batch, getattr(config, "pad_token_id", None))


def _places(batches: Batches, kind: str) -> int:
    if kind is models.LANGUAGE:
        return sum(len(row["input_ids"]) - 1 for row in batches.rows)
    return len(batches.rows)


def _logits(forward, device: str, **tensors: Tensor) -> Tensor:
    return forward(**{key: value.to(device) for key, value in tensors.items()}).logits


def _answers(kind: str, names: Sequence[str], examples: Examples, device: str):
    """How logits become answers, and what is right, of one kind of model."""
    classes = len(names)
    if kind is models.LANGUAGE:

        def tokens(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
            real = batch.inputs["attention_mask"][:, 1:].bool()
            labels = None if examples.made_up else batch.inputs["input_ids"][:, 1:][real]
            return _cut(logits, classes)[:, :-1][real.to(logits.device)], labels

        return tokens
    labels = torch.tensor(label_ids(examples, names)) if examples.labels is not None else None

    def rows(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return _cut(logits, classes), None if labels is None else labels[batch.rows]

    return rows


def _cut(logits: Tensor, classes: int) -> Tensor:
    """What a wider vocabulary or head beside this one adds is padding."""
    if logits.shape[-1] < classes:
        raise ValueError(
            f"a model gives {logits.shape[-1]} classes, and the fine-tune {classes}: the adapter is of another task"
        )
    return logits[..., :classes]


def _row(name: str, what: str, found: Score, nbytes: int) -> dict:
    return {
        "name": name,
        "what": what,
        "bytes": nbytes,
        "accuracy": found.accuracy,
        "loss": found.loss,
        "perplexity": found.perplexity,
        "agreement": found.agreement,
        "kl": found.kl,
        "places": found.places,
        "kl_places": found.kl_places,
        "seconds": found.seconds,
    }


def _base_row(base: str, ground: Checkpoint, run: Callable[[], Score]) -> dict:
    """The base may lack what the fine-tune's inputs need, such as tokens that were added: that is no failure."""
    try:
        return _row(base, "base", run(), ground.nbytes)
    except (ValueError, IndexError, RuntimeError) as error:
        empty = _row(base, "base", replace(Score(None, None, None, None, 0, 0, 0.0)), ground.nbytes)
        return empty | {"why": first_line(error)}
