"""Two loads side by side: ratios with bootstrap intervals, B over A, and checks on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanmoe.errors import InputError
from leanmoe.stats import Interval
from leanmoe_loadtest.reading.checks import OPTION
from leanmoe_loadtest.reading.conditions import Condition, parse_condition
from leanmoe_loadtest.reading.figures import KINDS
from leanmoe_loadtest.reading.intervals import Floats, Sample, middle_95
from leanmoe_loadtest.reading.sides import Side, about, notes, shares_prompts
from leanmoe_loadtest.reading.slo import Slo, goodput
from leanmoe_loadtest.reading.timeline import last_seen
from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.run import Run
from leanmoe_loadtest.stats import PERCENTILES, present, span_seconds

RESAMPLES, _FEWEST_RESAMPLES = 1000, 200
_MOST_DRAWN = 5e8
_POINTS = ("mean", *(f"p{p}" for p in PERCENTILES))
Latency = Callable[[RequestRecord], Sequence[float]]


def _one(value: float | None) -> Sequence[float]:
    return () if value is None else (value,)


_LATENCIES: dict[str, Latency] = {
    "ttft": lambda record: _one(record.ttft_seconds),
    "itl": lambda record: record.itl_seconds,
    "tpot": lambda record: _one(record.tpot_seconds),
    "e2e": lambda record: _one(record.e2e_seconds),
}

_RATES = ("output_tokens_per_second", "requests_per_second")
# Everything that is compared, in the order of the rows.
FIGURES = (*(f"{name}_{point}" for name in _LATENCIES for point in _POINTS), *_RATES, "goodput")


def compare(a: Side, b: Side, seed: int, slo: Slo | None = None) -> dict[str, Any]:
    """Every figure on both sides and its ratio, ``b`` over ``a``."""
    for side in (a, b):
        if not side.done:
            raise InputError(f"no request of {side.folders[0]} completed: nothing to compare")
    paired = shares_prompts(a, b)
    rows = [*_latency_rows(a, b, paired, seed), *_rate_rows(a, b, seed)]
    if slo is not None:
        rows += _goodput_rows(a, b, seed, slo)
    return {
        "a": about(a),
        "b": about(b),
        "paired": paired,
        "resamples": RESAMPLES,
        "rows": rows,
        "notes": list(notes(a, b, paired)),
    }


class _Draws:
    """How often each run, prompt or request of a side counts, draw by draw."""

    def __init__(self, side: Side, prompts: Sequence[int] | None) -> None:
        self._runs = len(side.runs)
        self._run_of = np.asarray([number for number, _ in side.done])
        places = {prompt: place for place, prompt in enumerate(prompts or ())}
        self._cluster_of = (
            np.asarray([places[record.prompt or 0] for _, record in side.done])
            if prompts is not None
            else np.arange(len(side.done))
        )

    @property
    def ones(self) -> Floats:
        return np.ones(self._run_of.size)

    def weights(self, random: np.random.Generator, clusters: Floats | None) -> Floats:
        """Of one draw; ``clusters`` are the prompts' where both sides share them."""
        if clusters is None:
            clusters = _resampled(random, self._cluster_of.size)
        runs = self.ones if self._runs == 1 else _resampled(random, self._runs)[self._run_of]
        return np.asarray(clusters[self._cluster_of] * runs)


def _resampled(random: np.random.Generator, count: int) -> Floats:
    drawn = random.integers(0, count, count)
    return np.asarray(np.bincount(drawn, minlength=count), dtype=np.float64)


def _latency_rows(a: Side, b: Side, paired: bool, seed: int) -> Iterator[dict[str, Any]]:
    prompts = sorted({r.prompt or 0 for side in (a, b) for _, r in side.done}) if paired else None
    draws = _Draws(a, prompts), _Draws(b, prompts)
    for name, latency in _LATENCIES.items():
        samples = [Sample([latency(record) for _, record in side.done]) for side in (a, b)]
        if all(sample.values.size for sample in samples):
            yield from _ratios(name, samples, draws, prompts, seed)


def _ratios(
    name: str,
    samples: Sequence[Sample],
    draws: tuple[_Draws, _Draws],
    prompts: Sequence[int] | None,
    seed: int,
) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(seed)
    ratios = np.empty((_resamples(samples), len(_POINTS)))
    for row in ratios:
        clusters = None if prompts is None else _resampled(random, len(prompts))
        pairs = zip(samples, draws, strict=True)
        of_a, of_b = [_points(s, side.weights(random, clusters)) for s, side in pairs]
        with np.errstate(divide="ignore", invalid="ignore"):
            row[:] = of_b / of_a
    of_a, of_b = [_points(s, side.ones) for s, side in zip(samples, draws, strict=True)]
    for point, a, b, column in zip(_POINTS, of_a, of_b, ratios.T, strict=True):
        yield _row(f"{name}_{point}", float(a), float(b), middle_95(column))


def _points(sample: Sample, weights: Floats) -> Floats:
    return np.append(sample.mean(weights), sample.percentiles(PERCENTILES, weights))


def _resamples(samples: Sequence[Sample]) -> int:
    """Fewer where there is much to resample: a minute is enough for an interval."""
    size = sum(sample.values.size for sample in samples)
    return int(np.clip(_MOST_DRAWN / size, _FEWEST_RESAMPLES, RESAMPLES))


def _over(b: float, a: float) -> float:
    return b / a if a else float("nan")


def _row(name: str, a: float, b: float, interval: Interval | None) -> dict[str, Any]:
    ratio = _over(b, a)
    return {
        "figure": name,
        "kind": KINDS[name],
        "a": a,
        "b": b,
        "ratio": ratio if np.isfinite(ratio) else None,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "clear": interval is not None and not interval.low <= 1.0 <= interval.high,
    }


def _rate_rows(a: Side, b: Side, seed: int) -> Iterator[dict[str, Any]]:
    """Figures with one value per run: their spread is that between runs, so one has none."""
    amounts: list[Callable[[RequestRecord], int]] = [lambda r: r.output_tokens, lambda r: 1]
    for name, amount in zip(_RATES, amounts, strict=True):
        values = [present(_per_second(run, amount) for run in side.runs) for side in (a, b)]
        means = [float(np.mean(side)) for side in values]
        yield _row(name, means[0], means[1], _between_runs(values, seed))


def _per_second(run: Run, amount: Callable[[RequestRecord], int]) -> float | None:
    span = span_seconds(run.requests)
    return sum(amount(r) for r in run.requests if r.completed) / span if span else None


def _goodput_rows(a: Side, b: Side, seed: int, slo: Slo) -> Iterator[dict[str, Any]]:
    """Of the share: runs drawn, and within each drawn run its requests."""
    random = np.random.default_rng(seed)
    counts = [np.asarray(list(_met(side, slo))) for side in (a, b)]
    if not all(side.size for side in counts):
        return
    shares = [float(side[:, 0].sum() / side.sum()) for side in counts]
    draws = [_drawn_shares(side, random) for side in counts]
    with np.errstate(divide="ignore", invalid="ignore"):
        yield _row("goodput", shares[0], shares[1], middle_95(draws[1] / draws[0]))


def _met(side: Side, slo: Slo) -> Iterator[tuple[int, int]]:
    """Met and missed of each run that decided any."""
    for run in side.runs:
        found = goodput(run.requests, slo, last_seen(run.requests), None) if run.requests else None
        if found is not None:
            yield found["met"], found["missed"]


def _drawn_shares(counts: NDArray[np.int64], random: np.random.Generator) -> Floats:
    runs = random.integers(0, len(counts), (RESAMPLES, len(counts)))
    sizes = counts.sum(axis=1)[runs]
    met = random.binomial(sizes, (counts[:, 0] / counts.sum(axis=1))[runs])
    return np.asarray(met.sum(axis=1) / sizes.sum(axis=1), dtype=np.float64)


def _between_runs(values: Sequence[Sequence[float]], seed: int) -> Interval | None:
    if min(map(len, values)) < 2:
        return None
    random = np.random.default_rng(seed)
    means = [
        np.asarray(side)[random.integers(0, len(side), (RESAMPLES, len(side)))].mean(axis=1)
        for side in values
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        return middle_95(means[1] / means[0])


def parse_ratio_checks(texts: Sequence[str]) -> list[Condition]:
    """``--fail-if`` of a comparison: the limits are ratios, written 1.1, 1.1x or 110%."""
    kinds = dict.fromkeys(FIGURES, "ratio")
    return [parse_condition(text, kinds, OPTION, "ttft_p95>1.1") for text in texts]


def ratio_failures(checks: Sequence[Condition], found: Mapping[str, Any]) -> list[str]:
    """A sentence for every condition that came true."""
    rows = {row["figure"]: row for row in found["rows"]}
    return [sentence for check in checks if (sentence := _ratio_failure(check, rows))]


def _ratio_failure(check: Condition, rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    row = rows.get(check.name)
    if row is None or row["ratio"] is None:
        needs = "; it needs --slo" if check.name == "goodput" else ""
        raise InputError(f"{OPTION} {check.text!r}: {check.name} was not measured{needs}")
    if not check.holds(row["ratio"]):
        return None
    spread = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{check.text} is true: B/A is {row['ratio']:.3f}{spread}"
