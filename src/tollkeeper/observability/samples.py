"""Reading Prometheus' text format: what all workers of a gateway count together is only known in that form."""

from collections.abc import Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families


def samples(exposition: bytes, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
    """Labels and value of every series of this name."""
    lines = [line for line in exposition.decode().splitlines() if name in line]
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if sample.name == name:
                yield sample.labels, sample.value
