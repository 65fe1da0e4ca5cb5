"""The figures of several replicas as one page for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families


class _Gathered:
    def __init__(self) -> None:
        self.families: dict[str, Metric] = {}

    def collect(self) -> Iterator[Metric]:
        yield from self.families.values()


def merged(pages: Sequence[tuple[str, bytes]]) -> bytes:
    """(replica, its page) each -> one page, every figure with a label ``replica`` more."""
    found = _Gathered()
    for replica, page in pages:
        for family in text_string_to_metric_families(page.decode()):
            into = found.families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            into.samples += [one._replace(labels={"replica": replica, **one.labels}) for one in family.samples]
    registry = CollectorRegistry()
    registry.register(found)
    return generate_latest(registry)
