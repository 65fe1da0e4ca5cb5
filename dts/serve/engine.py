"""The engine: one thread owns the model; requests wait in a queue and share batches, whatever their tasks.

Between two tokens of the rows that generate it does what else there is to do: rows join and leave, encoders' batches
run, tasks are loaded.  A model that `Continuous` is not for generates in batches of whole calls.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from dts.checkpoint.errors import first_line
from dts.devices import no_memory
from dts.files import Mapped
from dts.nn import DTSModel
from dts.nn.altered import BaseAltered
from dts.nn.layers import Layer
from dts.serve.answer import Answer
from dts.serve.catalogue import Catalogue
from dts.serve.continuous import Continuous, why_not
from dts.serve.encode import Pooling, classify, embed
from dts.serve.generate import OnceATask, generate
from dts.serve.job import Job, Row
from dts.serve.observer import Observer
from dts.serve.refused import INPUT, NoRoom, Refused
from dts.serve.residents import Residents
from dts.serve.route import candidates, choose
from dts.serve.sharing import SAID, as_new, moving_positions, sharing
from dts.serve.waiting import Batching, Waiting

log = logging.getLogger("dts.serve")
TRIED = 3  # tasks of which one prepares the model
LOOK = 0.2  # seconds between two looks at whether what a command waits for can still come
ALTERED = "the base's file was written to, so that its weights are others: the server has to be started again"
PATIENCE = 1.0  # seconds that others may overtake a row whose tasks have no room beside those that run


class Engine:
    """Runs jobs.  ``submit`` and ``do`` may be called by any thread, all else of the model only by its own.

    pad: the token that fills shorter rows of a batch;  memory, pinned: see `Residents`;  pooling: of embeddings;
    eligible: whether an input may choose a task of this name;  mapped: files that the model's weights are pages of.
    """

    def __init__(
        self,
        model: DTSModel,
        catalogue: Catalogue,
        batching: Batching | None = None,
        pad: int = 0,
        memory: int | None = None,
        pinned: Collection[str] = (),
        pooling: Pooling = "mean",
        observer: Observer | None = None,
        eligible: Callable[[str], bool] = lambda name: True,
        mapped: Mapped | None = None,
    ):
        self.model, self.catalogue, self.pooling = model, catalogue, pooling
        self.pad, self.ends = pad, end_tokens(model)
        self.observer, self.eligible, self._mapped = observer or Observer(), eligible, mapped or Mapped()
        self.waiting = Waiting(batching or Batching())
        self.residents = Residents(model, catalogue, memory, pinned, self.observer.loaded)
        self.answer = Answer(self.ends, self._token)
        self.continuous: Continuous | None = None
        if self.generates and not (why := why_not(model)):
            self.continuous = Continuous(model, pad, self.answer, self.waiting.batching, self._failed)
        elif self.generates:
            log.warning("answers are generated in batches of whole calls, as %s", why)
        self._batch: list[Row] = []  # the present one of encoders, or of whole calls
        self._batches = 0  # run so far
        self.sharing = sharing(model, pad, self.generates and self.continuous is None)
        self._rotary = moving_positions(model.model)
        if self.sharing != "any":
            log.warning("rows change what others beside them are told, so each call is of rows %s", SAID[self.sharing])
        self.draining = False
        self._together = True  # generate takes rows of several tasks at once
        self._thread = threading.Thread(target=self._work, name="dts-engine", daemon=True)

    def start(self) -> None:
        """Loads the pinned tasks, raises Refused where one cannot be, and begins to work."""
        self.residents.have(sorted(self.residents.pinned))
        if not self.model.tasks:
            self._prepare()
        self._thread.start()

    def _prepare(self) -> None:
        """What the first task makes of the model, its layers and what is looked up of them, is made before somebody
        waits for it: by a task that is taken out again."""
        for name in [] if self.catalogue.quantised else self.catalogue.names()[:TRIED]:
            try:
                if self.catalogue.size_of(name) > (self.residents.memory or math.inf):
                    continue
                self.model.load_task(name, self.catalogue.load(name))
            except (ValueError, RuntimeError, MemoryError):  # no memory, perhaps: whoever asks for it is told
                continue
            self.model.delete_task(name)
            self.model._state.watch = None  # no call was to reach it
            return

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def generates(self) -> bool:
        """Is it a causal language model?"""
        return bool(getattr(self.model.model, "can_generate", lambda: False)())

    @property
    def running(self) -> int:
        """Rows that run now."""
        return len(self._batch) + (len(self.continuous.rows) if self.continuous else 0)

    @property
    def batches(self) -> int:
        """Run so far: of encoders, of whole calls, and every forward of what is generated token by token."""
        return self._batches + (self.continuous.forwards if self.continuous else 0)

    @property
    def cached(self) -> int:
        """Bytes of keys and values."""
        return self.continuous.nbytes if self.continuous else 0

    @property
    def _busy(self) -> set[str]:
        return self.continuous.tasks if self.continuous else set()

    def submit(self, job: Job) -> None:
        """Take a job in; raises Refused: 404, 409 or 400 of its tasks, 429 of a full queue, 503 of a closed one."""
        for name in job.choice.tasks:
            self.catalogue.get(name)
        self.waiting.put(job)

    def do(self, command: Callable[[], Any], task: str | None = None) -> Any:
        """Have the engine's thread do something between two batches or tokens; returns what it returns.

        task: not before the rows of it that run have ended."""
        found: list[Any] = []
        done = threading.Event()

        def run() -> None:
            try:
                found.append(command())
            except Exception as error:
                found.append(error)
            done.set()

        self.waiting.command(run, task)
        while not done.wait(LOOK):
            if not self.alive:
                raise Refused("the engine has stopped", 503, "stopped")
            if self.waiting.given_up:
                raise Refused("the server is stopping, before this was done", 503, "stopping", retry_after=5)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def load(self, name: str, path: str | None = None, again: bool = False, pin: bool = False) -> None:
        """Load a task now.  path: where in the folder of adapters, if not under its name;  again: also where it is in
        memory, from what is on disk now;  pin: keep it there.  Answers of it that run end as they began, before.

        Raises Refused: 400 where it is loaded already, unless it is only to be pinned."""

        def run() -> None:
            if name in self.residents.loaded and not again:
                if pin and path is None:
                    self.residents.pin(name)
                    return
                said = f"the adapter {name!r} is loaded already: say load_inplace to load it again"
                raise Refused(said, code="already_loaded")
            before = self.catalogue.given(name)
            if path is not None or before is None:
                self.catalogue.give(name, path)
            try:
                self.residents.load(name, self._busy)
            except BaseException:
                self.catalogue.restore(name, before)
                raise
            if pin:
                self.residents.pin(name)

        self.do(run, name)

    def unload(self, name: str) -> None:
        """Take a task out of memory, and its name away if `load` gave it a path; Refused (404) where neither is so."""

        def run() -> None:
            given = self.catalogue.given(name) is not None
            self.catalogue.take(name)
            if not self.residents.drop(name) and not given:
                raise Refused(f"the adapter {name!r} is not loaded", 404, "not_loaded")

        self.do(run, name)

    def drain(self, timeout: float | None = None) -> bool:
        """Take nothing more in and answer what was; False if that took longer than so many seconds."""
        self.draining = True
        self.waiting.close()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def give_up(self) -> int:
        """Take nothing more in, and tell everybody who was not answered yet that nobody will be, as there is no more
        time; how many.  By any thread."""
        stopped = Refused("the server is stopping, before this was answered", 503, "stopping", retry_after=5)
        return self.waiting.fail_all(stopped)

    # ---- the thread that owns the model ------------------------------------------------------------------------

    def _work(self) -> None:
        running = self.continuous
        try:
            while True:
                work = self.waiting.take(self._busy, running.fits if running else None, idle=not self.running)
                if work is None:
                    break
                if not isinstance(work, list):
                    work()
                    continue
                if altered := self._mapped.altered():
                    raise BaseAltered(f"{ALTERED}: {', '.join(altered)}")
                if work:
                    self._run(work)
                if running and running.rows:
                    self._step(running)
        except BaseException as error:
            log.exception("the engine has stopped")
            if isinstance(error, BaseAltered):
                self.waiting.fail_all(Refused(ALTERED, 503, "base_altered"))
            raise
        finally:
            self.waiting.fail_all(Refused("the engine has stopped", 503, "stopped"))

    def _step(self, running: Continuous) -> None:
        try:
            running.step()
        except Exception as error:
            running.fail(in_words(error, ", ".join(sorted({one.row.job.id for one in running.rows}))))

    def _failed(self, row: Row, error: Exception) -> None:
        row.job.fail(in_words(error, row.job.id))

    def _run(self, rows: list[Row]) -> None:
        ready, later = self._loaded(rows)
        if later:
            self.waiting.put_back(later)
        now = time.monotonic()
        for row in ready:
            row.job.started = row.job.started or now
            self.observer.started(row, now - row.job.arrived)
        if self.continuous and rows[0].job.kind == "generate":
            self.continuous.join(ready)
            return
        self._batch = ready
        try:
            for part in self._parts(ready):
                self._attempt(part)
        finally:
            self._batch = []

    def _loaded(self, rows: list[Row]) -> tuple[list[Row], list[Row]]:
        """Rows whose tasks are in memory together with those that run, and those that must wait for another time."""
        rows = self._routed(rows)
        ready: list[Row] = []
        later: list[Row] = []
        keep, now = self._busy, time.monotonic()
        for row in rows:
            if row.job.over:
                continue
            if any(now - (one.blocked or now) > PATIENCE for one in later):
                later.append(row)
                continue
            try:
                self.residents.have(row.choice.tasks, keep)
                self._admit(row)
            except NoRoom as error:
                if never := error if not (ready or keep) else self._never_fits(row):
                    row.job.fail(never)
                else:
                    row.blocked = row.blocked or now
                    later.append(row)
                continue
            except Exception as error:
                self._failed(row, error)
                continue
            keep.update(row.choice.tasks)
            ready.append(row)
        return ready, later

    def _never_fits(self, row: Row) -> Refused | None:
        """Why a row's tasks have no room even when nothing else runs: others would wait for it in vain."""
        try:
            self.residents.fit(row.choice.tasks)
        except Refused as error:
            return error
        return None

    def _admit(self, row: Row) -> None:
        """A row whose tasks are in memory runs; raises Refused for tokens that are not theirs."""
        if not row.job.current():
            raise Refused("a task was loaded again with another tokenizer: ask again", 409, "reloaded", "model")
        size = vocabulary(self.model, row.choice.tasks)
        if (largest := max(row.ids)) >= size:
            raise Refused(f"the token {largest} is none of the {size} that {row.choice.name!r} has", param=INPUT)
        row.adapters = [self.catalogue.get(name) for name in row.choice.tasks]

    def _routed(self, rows: list[Row]) -> list[Row]:
        """Without those whose input was to choose a task and could not."""
        open_rows = [row for row in rows if row.choice.auto and not row.job.over]
        if open_rows:
            try:
                names = self.catalogue.names()
                allowed = [name for name in names if self.eligible(name)]
                if names and not allowed:
                    raise Refused(
                        "no task is there to choose from: each has a tokenizer that makes other tokens than the base's",
                        400,
                        "no_router",
                        "model",
                    )
                choose(self.model, open_rows, candidates(self.residents, allowed, self._busy), self.pad)
            except Exception as error:
                for row in open_rows:
                    self._failed(row, error)
        return [row for row in rows if not row.choice.auto]

    def _parts(self, rows: list[Row]) -> Iterable[list[Row]]:
        """The batch, or parts: a task each where the model cannot generate for several at once; of one length, or of a
        single row, where rows change what others are told."""
        tasks = not self._together and bool(rows) and rows[0].job.kind == "generate"
        parts: dict[Any, list[Row]] = {}
        for place, row in enumerate(rows):
            apart = {"any": 0, "length": len(row.ids), "none": place}[self.sharing]
            parts.setdefault((apart, row.choice.weights if tasks else ()), []).append(row)
        return parts.values()

    def _attempt(self, rows: list[Row]) -> None:
        """A batch; if it fails before anything was answered its rows run one by one: one of them harms no other."""
        try:
            self._batches += 1
            self._perform(rows)
        except Exception as error:
            if isinstance(error, OnceATask):
                self._together = False
            open_rows = [row for row in rows if not row.job.over and not row.done]
            if isinstance(error, OnceATask) and len(rows) > 1:
                for part in self._parts(open_rows):
                    self._attempt(part)
                return
            for row in open_rows:
                if len(rows) > 1 and row.tokens == 0:
                    self._attempt([row])
                else:
                    row.job.fail(in_words(error, row.job.id))

    def _perform(self, rows: list[Row]) -> None:
        kind = rows[0].job.kind
        as_new(self._rotary)
        if kind == "classify":
            classify(self.model, rows, self.pad)
        elif kind == "embed":
            embed(self.model, rows, self.pad, self.pooling)
        else:
            generate(self.model, rows, self.pad, self.answer)

    def _token(self, row: Row) -> None:
        now, job = time.monotonic(), row.job
        before = job.arrived if row.last_token is None else row.last_token
        row.last_token = job.last_token = now
        self.observer.token(row, now - before)


def vocabulary(model: DTSModel, names: Collection[str]) -> int:
    """Tokens that a mixture of loaded tasks knows: a GPU would not come back from one beyond them."""
    table: Any = model.model.get_input_embeddings()  # type: ignore[operator]
    rows = table.dts_rows([model._loaded[name].slot for name in names]) if isinstance(table, Layer) else None
    return int(table.num_embeddings if rows is None else rows[1])


def end_tokens(model: DTSModel) -> frozenset[int]:
    """The tokens at which the model's own configuration ends an answer."""
    found = getattr(getattr(model.model, "generation_config", None), "eos_token_id", None)
    return frozenset([] if found is None else [found] if isinstance(found, int) else found)


def in_words(error: Exception, request: str) -> Refused:
    """What a client is told of an error: everything where the request was wrong, else a number to ask the log for."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ValueError):
        return Refused(first_line(error))
    log.error("request %s failed", request, exc_info=error)
    if no_memory(error):
        return Refused("not enough memory for this request now", 503, "out_of_memory", retry_after=5)
    return Refused(f"internal error: the server's log has it under {request}", 500, "internal_error")
