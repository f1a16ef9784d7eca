"""The current values of a few exported series, read as a scrape would see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import REGISTRY, CollectorRegistry

from leanmoe_server.exported import exported


class Samples:
    """Values by name and labels; sums and largest values over those of one name."""

    def __init__(self, found: Mapping[str, list[tuple[dict[str, str], float]]]) -> None:
        self._found = found

    @classmethod
    def read(cls, names: Iterable[str], registry: CollectorRegistry = REGISTRY) -> Samples:
        """The samples ``names``, of all API processes where there are several."""
        wanted = set(names)
        found: dict[str, list[tuple[dict[str, str], float]]] = {name: [] for name in wanted}
        for family in exported(registry).restricted_registry(wanted).collect():
            for sample in family.samples:
                if sample.name in wanted:
                    found[sample.name].append((sample.labels, sample.value))
        return cls(found)

    def by(self, name: str, label: str) -> dict[str, float]:
        """Values of ``name`` by one of its labels, summed over the others."""
        values: dict[str, float] = {}
        for labels, value in self._found[name]:
            key = labels.get(label, "")
            values[key] = values.get(key, 0.0) + value
        return values

    def sum(self, name: str) -> float | None:
        """``None`` where nothing has the name."""
        values = [value for _, value in self._found[name]]
        return sum(values) if values else None

    def largest(self, name: str) -> float | None:
        """``None`` where nothing has the name."""
        return max((value for _, value in self._found[name]), default=None)
