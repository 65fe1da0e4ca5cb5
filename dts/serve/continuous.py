"""Generation token by token: rows of any tasks run together, each joins and leaves at any token.

A step is one forward for prompts that are not read yet, bounded in its tokens so that nobody waits long for their next
one, and one for a token of every row that has read its own.  Keys and values stay where they were written, in
`RowsCache`; no row sees those of another, and none outlives its row: a task that is loaded again meets nothing old.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dts.checkpoint.errors import first_line
from dts.nn import DTSModel
from dts.serve.answer import Answer, gone
from dts.serve.job import Row
from dts.serve.refused import Refused
from dts.serve.rows_cache import RowsCache, RowsChanged
from dts.serve.sampling import Draws, choose
from dts.serve.sharing import moving_positions, near
from dts.serve.waiting import Batching, length

Processor = Callable[[Tensor, Tensor], Tensor]  # (ids [1, n], scores [1, vocabulary]) -> scores


@dataclass(eq=False)
class Running:
    """A row that runs.  ids: of its prompt and its answer;  read: so many of them have keys and values;  adapters: what
    its tasks were when it began;  processors: what the base's generation_config changes of its scores."""

    row: Row
    ids: list[int]
    adapters: list[Any]
    processors: list[Processor] = field(default_factory=list)
    read: int = 0

    @property
    def draws(self) -> Draws:
        """How its tokens are chosen."""
        assert self.row.draws is not None  # a row that generates has them
        return self.row.draws

    @property
    def left(self) -> int:
        """Tokens that are not read yet: 1 where only the last one is new."""
        return len(self.ids) - self.read

    def tokens(self, most: int) -> int:
        """Those that the next forward for it has."""
        return min(self.left, most)


class Continuous:
    """The rows that run, for the thread that owns the model.

    failed: called with a row and the error that ends it.
    """

    def __init__(
        self, model: DTSModel, pad: int, answer: Answer, batching: Batching, failed: Callable[[Row, Exception], None]
    ):
        self.model, self.pad, self.answer, self.batching, self.failed = model, pad, answer, batching, failed
        self.rows: list[Running] = []
        self.together = True  # the model takes rows of several tasks at once
        self.forwards = 0  # run so far
        self._cache = RowsCache()
        self._call = Call.of(model.model)
        model._state.keeping = True  # rows have the same tasks at most tokens

    @property
    def tasks(self) -> set[str]:
        """Of the rows that run: they can be neither unloaded nor loaded again now."""
        return {name for running in self.rows for name in running.row.choice.tasks}

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return self._cache.nbytes

    def fits(self, new: Sequence[Row], row: Row) -> bool:
        """Whether there is room for one more row beside those that run and those that are to join."""
        rows = [*(running.row for running in self.rows), *new, row]
        longest = max(map(length, rows))
        return len(rows) == 1 or (len(rows) <= self.batching.rows and longest * len(rows) <= self.batching.tokens)

    def join(self, rows: Sequence[Row]) -> None:
        """Rows whose tasks are loaded run from the next step on."""
        for row in rows:
            try:
                processors = self._call.processors(row, self.pad)
            except Exception as error:
                self.failed(row, error)
                continue
            self._cache.clear(len(self.rows))
            adapters = [self.model._loaded[name] for name in row.choice.tasks]
            self.rows.append(Running(row, list(row.ids), adapters, processors))

    @torch.no_grad()
    def step(self) -> None:
        """One more token for every row that has read its prompt, and more of their prompts for others."""
        self._leave()
        ready = [running for running in self.rows if running.left == 1]
        waiting = [running for running in self.rows if running.left > 1]
        if waiting:
            prompts = self._prompts(waiting)
            self._run(prompts, [running.tokens(self.batching.prefill) for running in prompts])
        ready = [running for running in ready if not running.row.done]
        if ready:
            self._run(ready, [1] * len(ready))
        self._leave()

    def fail(self, error: Refused) -> None:
        """Ends all rows."""
        for running in self.rows:
            running.row.job.fail(error)
        self.rows = []
        self._cache.drop()

    # ---- one forward -------------------------------------------------------------------------------------------

    def _prompts(self, waiting: list[Running]) -> list[Running]:
        """Those whose prompts are read next: the oldest, and as many as a forward may have tokens for of those that are
        nearest to it in length, so that little of it is padding."""
        most = self.batching.prefill
        first = min(waiting, key=lambda running: running.row.job.arrived)
        longest = first.tokens(most)
        chosen = [first]
        for running in sorted(waiting, key=lambda running: abs(running.tokens(most) - longest)):
            wider = max(longest, running.tokens(most))
            if running is not first and wider * (len(chosen) + 1) <= most:
                chosen, longest = [*chosen, running], wider
        return chosen

    def _run(self, rows: list[Running], counts: list[int]) -> None:
        """A forward of so many tokens of each row; where it fails, each row has one of its own: none harms another."""
        for part in self._parts(rows):
            own = [counts[rows.index(running)] for running in part]
            try:
                self._forward(part, own)
            except RowsChanged:
                if len(part) == 1 or not self.together:
                    raise
                self.together = False  # nothing was said yet, and keys are written again
                self._run(part, own)
            except Exception as error:
                if len(part) == 1:
                    self.failed(part[0].row, error)
                    part[0].row.done = True
                    continue
                for running, count in zip(part, own):
                    self._run([running], [count])

    def _parts(self, rows: list[Running]) -> list[list[Running]]:
        """All together, or a part a task where the model cannot have rows of several."""
        if self.together:
            return [rows]
        parts: dict[Any, list[Running]] = {}
        for running in rows:
            parts.setdefault(running.row.choice.weights, []).append(running)
        return list(parts.values())

    def _forward(self, rows: list[Running], counts: list[int]) -> None:
        for running in rows:
            now = [self.model._loaded.get(name) for name in running.row.choice.tasks]
            if any(one is not before for one, before in zip(now, running.adapters, strict=True)):
                raise Refused("a task of this answer was loaded again while it ran", 409, "reloaded", "model")
        starts, longest = [running.read for running in rows], max(counts)
        new = [running.ids[start : start + count] for running, start, count in zip(rows, starts, counts)]
        ids = torch.tensor([[*own, *[self.pad] * (longest - len(own))] for own in new])
        lines = [self.rows.index(running) for running in rows]
        last = torch.tensor(counts)
        asked = sorted({count - 1 for running, count in zip(rows, counts) if count == running.left}) or [0]
        tasks = [running.row.choice.selection for running in rows]
        self._cache.used = len(self.rows), max(running.read for running in self.rows)
        logits = self._call.logits(self.model, self._cache, lines, ids, torch.tensor(starts), last, asked, tasks)
        self.forwards += 1
        done = [index for index, (running, count) in enumerate(zip(rows, counts)) if count == running.left]
        ended = [rows[index] for index in done]
        if done:
            logits = logits[done, [asked.index(counts[index] - 1) for index in done]]
            if any(running.processors for running in ended):
                logits = logits.float()
        tokens = self._chosen(ended, logits) if done else []
        for running, count in zip(rows, counts):
            running.read += count
        for running, token, own in zip(ended, tokens, logits):
            self._say(running, token, own)

    def _chosen(self, rows: list[Running], logits: Tensor) -> list[int | Exception]:
        """The next token of each row, or why it has none.  logits: [rows, vocabulary], written into."""
        wrong: dict[int, Exception] = {}
        for index, running in enumerate(rows):
            try:
                for process in running.processors:
                    ids = torch.tensor([running.ids], device=logits.device)
                    logits[index] = process(ids, logits[index, None])[0]
            except Exception as error:  # the others go on
                wrong[index] = error
        tokens = choose([running.draws for running in rows], logits)
        return [wrong.get(index, token) for index, token in enumerate(tokens)]

    def _say(self, running: Running, token: int | Exception, logits: Tensor) -> None:
        """A row says the token that it chose, with its probability where that was asked for.  logits: [vocabulary]."""
        try:
            if isinstance(token, Exception):
                raise token
            running.ids.append(token)
            self.answer.push(running.row, token, running.draws.scored(logits, token))
        except Exception as error:  # the others go on, and none of them says a token twice
            self.failed(running.row, error)
            running.row.done = True

    def _leave(self) -> None:
        """Rows that are done, or that nobody waits for, make room: the last line takes each one's place."""
        for line in reversed(range(len(self.rows))):
            if not gone(self.rows[line].row):
                continue
            last = self.rows.pop()
            if line < len(self.rows):
                self._cache.move(len(self.rows), line)
                self.rows[line] = last
        if not self.rows:
            self._cache.drop()


@dataclass(frozen=True)
class Call:
    """How a causal language model of transformers is called for rows of different lengths.

    base: the model;  cache, positions, keep: names of arguments, empty: it has none;  windows: kinds of attention
    layers, and how many tokens each sees, None: all;  changes: its generation_config changes scores.
    """

    base: Any
    cache: str
    positions: str
    keep: str
    windows: dict[str, int | None]
    changes: bool

    @classmethod
    def of(cls, base: Any) -> Call:
        """Raises NotImplementedError for a model with layers of another kind than attention."""
        names = inspect.signature(type(base).forward).parameters
        has = lambda *those: next((name for name in those if name in names), "")  # noqa: E731
        made = cls(
            base, has("cache", "past_key_values"), has("position_ids"), has("logits_to_keep"), _windows(base), False
        )
        return replace(made, changes=bool(made._prepared([0, 0], 0, 8)))

    def logits(
        self,
        model: Any,
        cache: RowsCache,
        lines: Sequence[int],
        ids: Tensor,
        starts: Tensor,
        counts: Tensor,
        asked: Sequence[int],
        tasks: Any = None,
    ) -> Tensor:
        """Logits [rows, asked, vocabulary] at the ``asked`` ones of the new tokens.

        lines: of the cache, a row each;  ids: int64 [rows, longest], a row's new tokens first;  starts: tokens that it
        had before;  counts: new ones;  tasks: of a `DTSModel`.
        """
        device, longest = self.base.device, ids.shape[1]
        last = (starts + counts)[:, None] - 1
        positions = torch.minimum(starts[:, None] + torch.arange(longest), last).to(device)
        width = int(last.max()) + 1
        cache.at(lines, starts.tolist(), longest, width)
        seen = torch.arange(width, device=device)
        masks = {}
        for kind, window in self.windows.items():
            allowed = seen <= positions[..., None]
            if window is not None:
                allowed &= seen > positions[..., None] - window
            lowest = torch.finfo(self.base.dtype).min
            mask = torch.zeros(allowed.shape, dtype=self.base.dtype, device=device).masked_fill_(~allowed, lowest)
            masks[kind] = mask[:, None]
        given: dict[str, Any] = {"input_ids": ids.to(device), self.cache: cache, "use_cache": True}
        given["attention_mask"] = next(iter(masks.values())) if len(masks) == 1 else masks
        if self.positions:
            given[self.positions] = positions
        if self.keep:
            given[self.keep] = list(asked)  # no tensor: it has no rows, and could look as if it had
        if tasks is not None:
            given["tasks"] = tasks
        out = model(**given).logits
        return out if self.keep else out[:, list(asked)]

    def processors(self, row: Row, pad: int) -> list[Processor]:
        """What changes a row's scores by the model's generation_config: penalties, forbidden and forced tokens."""
        if not self.changes or row.draws is None:
            return []
        return self._prepared(list(row.ids), pad, row.draws.sampling.max_tokens)

    def _prepared(self, ids: list[int], pad: int, tokens: int) -> list[Processor]:
        """As ``generate`` makes them for a greedy answer, without running the model."""
        found: list[Processor] = []

        def only_look(model: Any, input_ids: Tensor, logits_processor: Any, **_: Any) -> Tensor:
            found.extend(logits_processor)
            return input_ids

        rows = torch.tensor([ids], device=self.base.device)
        self.base.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad,
            custom_generate=only_look,
        )
        return found


def _windows(base: Any) -> dict[str, int | None]:
    config = base.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return {"sliding_attention": window} if window else {"full_attention": None}
    known = {"full_attention": None, "sliding_attention": window}
    if strange := set(kinds) - set(known):
        raise NotImplementedError(f"layers of the kind {', '.join(sorted(strange))}")
    return {kind: known[kind] for kind in known if kind in kinds}


@torch.no_grad()
def why_not(model: DTSModel) -> str:
    """Why a model cannot generate so, in words, or nothing: tried on the base, with a row that joins another."""
    base: Any = model.model
    if base.config.is_encoder_decoder:
        return "it has an encoder and a decoder"
    if moving_positions(base):  # which short rows do not show
        return "its rotary frequencies follow the longest row"
    try:
        with _small_window(base.config.get_text_config()):
            return _differs(base)
    except Exception as error:  # whatever a model does with arguments that it does not know
        return first_line(error)


class _small_window:
    """A window of 4 for a while, where a model has one: short rows show what it does."""

    def __init__(self, config: Any):
        self.config, self.before = config, getattr(config, "sliding_window", None)

    def __enter__(self) -> None:
        if self.before:
            self.config.sliding_window = 4

    def __exit__(self, *_: object) -> None:
        if self.before:
            self.config.sliding_window = self.before


def _differs(base: Any) -> str:
    """Two rows, the second of which joins when the first is at its sixth token, beside whole passes of each."""
    call, cache = Call.of(base), RowsCache()
    if not call.cache:
        return "its forward takes no cache"
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randint(base.get_input_embeddings().num_embeddings, (n,), generator=draw) for n in (9, 4))
    whole = [base(ids[None].to(base.device)).logits[0].float() for ids in (first, second)]
    at = torch.tensor
    a = call.logits(base, cache, [0], first[None, :4], at([0]), at([4]), [3])[0, 0]
    b = call.logits(base, cache, [0], first[None, 4:6], at([4]), at([2]), [1])[0, 0]
    rows = torch.zeros(2, 3, dtype=torch.int64)
    rows[0, :2], rows[1] = first[6:8], second[:3]
    both = call.logits(base, cache, [0, 1], rows, at([6, 0]), at([2, 3]), [1, 2])
    rows = torch.stack([first[8:], second[3:]])
    end = call.logits(base, cache, [0, 1], rows, at([8, 3]), at([1, 1]), [0])[:, 0]
    found = torch.stack([a, b, both[0, 0], both[1, 1], *end]).float()
    expected = torch.stack([*whole[0][[3, 5, 7]], whole[1][2], whole[0][8], whole[1][3]])
    same = near(found - expected, expected, base.dtype)
    return "" if same else "rows that join give other logits than whole passes"
