"""Figures for Prometheus, in the shapes of vLLM's: the same names after ``dts:`` instead of ``vllm:``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dts.serve.choice import Choice
from dts.serve.job import Job, Row
from dts.serve.observer import Observer

if TYPE_CHECKING:
    from dts.serve.engine import Engine

LABELS = 100  # names of tasks that a figure may have; those that come later are "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)


class Metrics(Observer):
    """One registry for one server.  A mixture counts as "mixture": its weights are a client's, and without bound."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._names: set[str] = set()
        self._of_tokens: dict[tuple[str, bool], tuple[Counter, Histogram]] = {}
        name = ["model_name"]

        def counter(what: str, text: str, labels: list[str] = name) -> Counter:
            return Counter(f"dts:{what}", text, labels, registry=self.registry)

        def seconds(what: str, text: str) -> Histogram:
            return Histogram(f"dts:{what}", text, name, buckets=SECONDS, registry=self.registry)

        self._prompt = counter("prompt_tokens", "Tokens of prompts that were taken in.")
        self._generated = counter("generation_tokens", "Tokens that were generated.")
        self._requests = counter("request_success", "Requests by how they ended.", [*name, "finished_reason"])
        self._refused = counter("request_refused", "Requests that were refused, by HTTP status.", ["status"])
        self._loads = counter("adapter_loads", "Adapters that were loaded.")
        self._first = seconds("time_to_first_token_seconds", "From a request to its first token.")
        self._inter = seconds("inter_token_latency_seconds", "Between two tokens of a request.")
        self._queue = seconds("request_queue_time_seconds", "From a request to its batch.")
        self._whole = seconds("e2e_request_latency_seconds", "From a request to its end.")
        self._load_time = seconds("adapter_load_seconds", "That loading an adapter took.")

        sizes = lambda what, text: Histogram(f"dts:{what}", text, name, buckets=TOKENS, registry=self.registry)  # noqa: E731
        self._prompt_sizes = sizes("request_prompt_tokens", "Tokens of the prompts of a request.")
        self._answer_sizes = sizes("request_generation_tokens", "Tokens of the answers of a request.")
        self._each = seconds("request_time_per_output_token_seconds", "Between two tokens, the mean of a request.")

    def watch(self, engine: Engine) -> None:
        """Gauges that are read from the engine when they are asked for."""
        for what, text, read in (
            ("num_requests_running", "Rows of the present batch.", lambda: engine.running),
            ("num_requests_waiting", "Rows that wait.", lambda: len(engine.waiting)),
            ("adapters_loaded", "Adapters in memory.", lambda: len(engine.residents.loaded)),
            ("adapters_bytes", "Bytes that adapters take in memory.", lambda: engine.residents.nbytes),
            ("batches", "Batches and steps run so far.", lambda: engine.batches),
            ("kv_cache_bytes", "Of keys and values of the rows that run.", lambda: engine.cached),
        ):
            Gauge(f"dts:{what}", text, registry=self.registry).set_function(read)

    def label(self, choice: Choice) -> str:
        """A name of a bounded number of them."""
        name = choice.name if len(choice.tasks) < 2 and ":" not in choice.name else "mixture"
        if name not in self._names and len(self._names) >= LABELS:
            return "other"
        self._names.add(name)
        return name

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def taken(self, job: Job) -> None:
        """A request was taken into the queue."""
        self._prompt.labels(self.label(job.choice)).inc(sum(len(row.ids) for row in job.rows))

    def finished(self, job: Job, seconds: float) -> None:
        """A request that was taken in has ended."""
        label = self.label(job.choice)
        self._requests.labels(label, job.reason).inc()
        self._whole.labels(label).observe(seconds)
        self._prompt_sizes.labels(label).observe(sum(len(row.ids) for row in job.rows))
        new = sum(row.tokens for row in job.rows)
        if job.kind != "generate":
            return
        self._answer_sizes.labels(label).observe(new)
        if job.started is not None and job.last_token is not None and new > len(job.rows):
            each = (job.last_token - job.started) / (new / len(job.rows))
            self._each.labels(label).observe(each)

    def refused(self, status: int) -> None:
        self._refused.labels(str(status)).inc()

    def started(self, row: Row, waited: float) -> None:
        self._queue.labels(self.label(row.job.choice)).observe(waited)

    def token(self, row: Row, seconds: float) -> None:
        label, first = self.label(row.job.choice), row.tokens == 1
        found = self._of_tokens.get((label, first))
        if found is None:  # to find them by their labels takes longer than to count
            latency = self._first if first else self._inter
            found = self._of_tokens[label, first] = self._generated.labels(label), latency.labels(label)
        generated, latency_of = found
        generated.inc()
        latency_of.observe(seconds)

    def loaded(self, name: str, seconds: float) -> None:
        label = self.label(Choice(name))
        self._loads.labels(label).inc()
        self._load_time.labels(label).observe(seconds)
