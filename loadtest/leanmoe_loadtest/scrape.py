"""Reads the server's ``/metrics`` and skip level while the load runs, from a thread of its own."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import urllib3
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from leanmoe_loadtest.clock import now
from leanmoe_loadtest.run import Scrape

_TIMEOUT_SECONDS = 5.0
_VLLM = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:num_preemptions_total",
)
_PREFIXES = ("leanmoe_", *_VLLM)
_SUFFIXES_LEFT_OUT = ("_bucket", "_created")


def samples_of(text: str) -> dict[str, float]:
    """The finite series a run keeps, by ``name{label="x"}``, out of a Prometheus text page."""
    kept = "\n".join(line for line in text.splitlines() if line.startswith(_PREFIXES)) + "\n"
    return {
        _series(sample): float(sample.value)
        for family in text_string_to_metric_families(kept)
        for sample in family.samples
        if not sample.name.endswith(_SUFFIXES_LEFT_OUT) and math.isfinite(sample.value)
    }


def _series(sample: Sample) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
    return f"{sample.name}{{{labels}}}" if labels else sample.name


def get_json(url: str, headers: Mapping[str, str]) -> dict[str, Any] | None:
    """The JSON object at ``url``; ``None`` where there is none."""
    answer = _get(url, headers)
    try:
        found = json.loads(answer) if answer is not None else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _get(url: str, headers: Mapping[str, str]) -> str | None:
    try:
        answer = urllib3.request(
            "GET", url, headers=dict(headers), timeout=_TIMEOUT_SECONDS, retries=False
        )
    except urllib3.exceptions.HTTPError:
        return None
    return answer.data.decode("utf-8", errors="replace") if answer.status == 200 else None


class Scraper:
    """Scrapes every ``seconds``; a reading that failed is left out."""

    def __init__(self, url: str, headers: Mapping[str, str], seconds: float) -> None:
        self._url, self._headers, self._seconds = f"{url}/metrics", headers, seconds
        self._stop = threading.Event()
        self.scrapes: list[Scrape] = []

    def scrape(self) -> None:
        """Take one reading now."""
        asked = now()
        text = _get(self._url, self._headers)
        try:
            samples = samples_of(text) if text is not None else None
        except ValueError:
            return
        # A web server that has a page for every path is not one with metrics.
        if samples:
            # The server's values are those of some moment between asking and having the answer.
            self.scrapes.append(Scrape(time=(asked + now()) / 2, samples=samples))

    def run(self) -> None:
        """Scrape until told to stop, and once more then."""
        while not self._stop.is_set():
            self.scrape()
            self._stop.wait(self._seconds)
        self.scrape()

    def stop(self) -> None:
        self._stop.set()


def series_names(url: str, headers: Mapping[str, str]) -> set[str]:
    """What ``url`` exports of all that a run keeps; nothing where it has no ``/metrics``."""
    scraper = Scraper(url, headers, 1.0)
    scraper.scrape()
    return {key.partition("{")[0] for one in scraper.scrapes for key in one.samples}


@contextmanager
def scraping(url: str, headers: Mapping[str, str], seconds: float = 1.0) -> Iterator[list[Scrape]]:
    """Scrape ``url`` during the block; the list grows meanwhile and is complete after it."""
    scraper = Scraper(url, headers, seconds)
    thread = threading.Thread(target=scraper.run, name="scraper", daemon=True)
    thread.start()
    try:
        yield scraper.scrapes
    finally:
        scraper.stop()
        thread.join(2 * _TIMEOUT_SECONDS)
