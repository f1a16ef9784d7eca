"""``leanmoe bench tools``: do other load generators see what ``leanmoe loadtest`` sees?

``leanmoe loadtest``, ``vllm bench serve`` and GuideLLM take turns on one server, with the same
prompts, the same number of requests under way and answers of the same length. What each
reports is compared under our names, and where the server is vLLM with the server's own means
of the same run:

- vLLM takes the event that carries the role alone for the first token. Its servers send it right
  before the first text, so TTFT is the same and one gap more, of nearly nothing, is among its
  ITL. That gap is left out here; ``itl_mean_as_printed`` is vLLM's own figure.
- GuideLLM's ``inter_token_latency`` is one mean per request: our TPOT. Its
  ``time_per_output_token`` includes the first token and has no counterpart.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from leanmoe.errors import InputError, LeanMoEError
from leanmoe_bench.load.known_server import Pace, known_server
from leanmoe_bench.ratio import paired_ratio

# Five values each, so that neither median nor p95 falls between two of them.
_PACE = Pace(
    ttft_ms=[200.0, 260.0, 320.0, 380.0, 600.0],
    itl_ms=[20.0, 28.0, 34.0, 40.0, 56.0],
    tokens=0,
    late_role=True,
)
_STREAMS, _TOKENS = 4, 32
# A real server is quicker than the known pace, and less steady.
_REQUESTS = {"known pace": 60, "given": 240}
_QUESTIONS = (
    "What is the capital of France?",
    "Explain why the sky is blue.",
    "List five things to check before a long drive.",
    "How does a heat pump work?",
    "Describe a quiet morning in a small harbour town.",
    "What is the difference between a virus and a bacterium?",
    "Give me a recipe for tomato soup.",
    "Plan a chess lesson for a ten-year-old.",
)
_POINTS = ("mean", "p50", "p95")
FIGURES = (
    *(f"{name}_{point}" for name in ("ttft", "itl", "tpot", "e2e") for point in _POINTS),
    "itl_mean_as_printed",
    "tokens_per_second",
)
# What vLLM measures of its requests by itself.
_OWN = {
    "ttft_mean": "vllm:time_to_first_token_seconds",
    "tpot_mean": "vllm:request_time_per_output_token_seconds",
    "e2e_mean": "vllm:e2e_request_latency_seconds",
}
Figures = dict[str, float]


@dataclass(frozen=True)
class Target:
    """The server all tools load, and the folder with the prompts."""

    url: str
    model: str
    work: Path
    requests: int

    def prompts(self) -> Path:
        path = self.work / "prompts.jsonl"
        texts = [f"Question {n}: {_QUESTIONS[n % len(_QUESTIONS)]}" for n in range(self.requests)]
        rows = [{"prompt": text, "output_tokens_count": _TOKENS} for text in texts]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def tokenizer(self) -> Path:
        """One word, one token."""
        folder = self.work / "tokenizer"
        folder.mkdir(exist_ok=True)
        words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
        words.pre_tokenizer = Whitespace()
        words.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "?"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return folder


def _output(command: Sequence[str], work: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=work, check=False)
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip()[-800:]
        raise LeanMoEError(f"{Path(command[0]).name} ended with {done.returncode}: {tail}")
    return done.stdout


def _ours(target: Target) -> Figures:
    command = [sys.executable, "-m", "leanmoe.cli", "loadtest", target.url, "--json"]
    # Closed loop until the number is reached, however long it takes.
    command += [
        "--users",
        str(_STREAMS),
        "--max-requests",
        str(target.requests),
        "--duration",
        "3600",
    ]
    command += ["--max-tokens", str(_TOKENS), "--ignore-eos", "--prompts", str(target.prompts())]
    found = json.loads(_output([*command, "--model", target.model], target.work))
    latencies = {
        f"{name}_{point}": found[f"{name}_ms"][point]
        for name in ("ttft", "itl", "tpot", "e2e")
        for point in _POINTS
    }
    return {
        **latencies,
        "itl_mean_as_printed": found["itl_ms"]["mean"],
        "tokens_per_second": found["output_tokens_per_second"],
    }


def _vllm(target: Target) -> Figures:
    result = target.work / "vllm.json"
    vllm = str(Path(sys.executable).with_name("vllm"))
    options = {
        "--backend": "openai-chat",
        "--base-url": target.url,
        "--endpoint": "/v1/chat/completions",
        "--model": target.model,
        "--dataset-name": "custom",
        "--dataset-path": str(target.prompts()),
        "--num-prompts": str(target.requests),
        "--max-concurrency": str(_STREAMS),
        "--percentile-metrics": "ttft,tpot,itl,e2el",
        "--metric-percentiles": "50,95",
        "--temperature": "0",
        "--custom-output-len": str(_TOKENS),
        # It must have one and counts prompts with it; answers are counted by the server.
        "--tokenizer": str(target.tokenizer()),
        "--result-dir": str(target.work),
        "--result-filename": result.name,
    }
    flags = ["--ignore-eos", "--skip-chat-template", "--save-result", "--save-detailed"]
    pairs = [part for pair in options.items() for part in pair]
    _output([vllm, "bench", "serve", *pairs, *flags, "--disable-tqdm"], target.work)
    found = json.loads(result.read_text(encoding="utf-8"))
    names = {"ttft": "ttft", "tpot": "tpot", "e2e": "e2el"}
    latencies = {
        f"{ours}_{point}": float(found[f"{point}_{theirs}_ms"])
        for ours, theirs in names.items()
        for point in _POINTS
    }
    gaps = [1e3 * gap for request in found["itls"] for gap in request[1:]]
    points = [np.mean(gaps), *np.percentile(gaps, [50, 95])]
    itl = {f"itl_{name}": float(value) for name, value in zip(_POINTS, points, strict=True)}
    return {
        **latencies,
        **itl,
        "itl_mean_as_printed": float(found["mean_itl_ms"]),
        "tokens_per_second": float(found["output_throughput"]),
    }


def _guidellm(program: str) -> Callable[[Target], Figures]:
    def run(target: Target) -> Figures:
        result = target.work / "guidellm.json"
        result.unlink(missing_ok=True)
        options = {
            "--backend": f"kind=openai_http,target={target.url},model={target.model}",
            "--profile": f"kind=concurrent,streams={_STREAMS}",
            "--constraint": f"kind=max_requests,count={target.requests}",
            "--data": f"kind=json_file,path={target.prompts()}",
            "--output": f"kind=json,path={result}",
        }
        pairs = [part for pair in options.items() for part in pair]
        _output([program, "run", *pairs, "--disable-console"], target.work)
        metrics = json.loads(result.read_text(encoding="utf-8"))["benchmarks"][0]["metrics"]
        return _of_guidellm(metrics)

    return run


def _of_guidellm(metrics: Mapping[str, Any]) -> Figures:
    sources = {
        "ttft": ("time_to_first_token_ms", 1.0),
        "tpot": ("inter_token_latency_ms", 1.0),
        "e2e": ("request_latency", 1e3),
    }
    figures = {}
    for ours, (theirs, scale) in sources.items():
        found = metrics[theirs]["successful"]
        points = {"mean": found["mean"], **found["percentiles"]}
        figures.update({f"{ours}_{point}": scale * float(points[point]) for point in _POINTS})
    rate = metrics["output_tokens_per_second"]["successful"]["mean"]
    return {**figures, "tokens_per_second": float(rate)}


def measure(work: Path, rounds: int, url: str | None, guidellm: str | None) -> dict[str, Any]:
    """Rounds in which every tool has its turn, in another order each time."""
    tools: dict[str, Callable[[Target], Figures]] = {"leanmoe": _ours, "vllm": _vllm}
    program = guidellm or shutil.which("guidellm")
    if program is not None:
        tools["guidellm"] = _guidellm(_program(program))
    with ExitStack() as stack:
        if url is None:
            url = stack.enter_context(known_server(_PACE)).url
            server = "known pace"
        else:
            url, server = url.rstrip("/").removesuffix("/v1"), "given"
        target = Target(url, _model(url), Path(tempfile.mkdtemp(dir=work)), _REQUESTS[server])
        seen: dict[str, list[Figures]] = {name: [] for name in tools}
        own: dict[str, list[Figures]] = {name: [] for name in tools}
        for turn in range(rounds):
            for name in _order(list(tools), turn):
                before = _own_sums(url)
                seen[name].append(tools[name](target))
                own[name].append(_own_means(before, _own_sums(url)))
    return {
        "server": server,
        "model": target.model,
        "streams": _STREAMS,
        "requests": target.requests,
        "tokens": _TOKENS,
        "rounds": rounds,
        "left_out": [] if program else ["guidellm"],
        "rows": [row for name in tools if name != "leanmoe" for row in _rows(seen, name)],
        "against_server": [row for name in tools for row in _own_rows(name, seen, own)],
    }


def _own_sums(url: str) -> dict[str, tuple[float, float]]:
    """vLLM's own latencies so far, in seconds, and of how many requests; none elsewhere."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    values: dict[str, float] = {}
    for sample in (line.rpartition(" ") for line in text.splitlines()):
        name = sample[0].partition("{")[0]
        if name.endswith(("_sum", "_count")):
            values[name] = values.get(name, 0.0) + float(sample[2])
    return {
        figure: (values[f"{name}_sum"], values[f"{name}_count"])
        for figure, name in _OWN.items()
        if f"{name}_sum" in values
    }


def _own_means(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> Figures:
    """Means in milliseconds of the requests in between."""
    means = {"requests": 0.0}
    for figure, (seconds, count) in after.items():
        since = before.get(figure, (0.0, 0.0))
        if count > since[1]:
            means[figure] = 1e3 * (seconds - since[0]) / (count - since[1])
            means["requests"] = count - since[1]
    return means


def _own_rows(
    name: str, seen: Mapping[str, Sequence[Figures]], own: Mapping[str, Sequence[Figures]]
) -> list[dict[str, Any]]:
    """A tool's means beside the server's of the same run, which a drifting server leaves true."""
    rows = []
    for figure in _OWN:
        if not all(figure in means for means in own[name]):
            continue
        client = [figures[figure] for figures in seen[name]]
        server = [means[figure] for means in own[name]]
        rows.append(
            {
                "tool": name,
                "figure": figure,
                "requests": [int(means["requests"]) for means in own[name]],
                **_compared("client", client, "server", server),
            }
        )
    return rows


def _compared(
    name: str, values: Sequence[float], other: str, theirs: Sequence[float]
) -> dict[str, float]:
    """Both medians, and the ratio of the first to the second, paired by turn."""
    ratio = paired_ratio(values, theirs)
    ends = {"ratio": ratio.middle, "low": ratio.low, "high": ratio.high}
    medians = {name: round(median(values), 3), other: round(median(theirs), 3)}
    return {**medians, **{key: round(value, 4) for key, value in ends.items()}}


def _program(text: str) -> str:
    found = shutil.which(text)
    if found is None:
        raise InputError(f"--guidellm {text!r} is no program; give the path of guidellm")
    return str(Path(found).absolute())


def _order(names: list[str], turn: int) -> list[str]:
    place = turn % len(names)
    return [*names[place:], *names[:place]]


def _model(url: str) -> str:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"--url {url}: no model there ({error})") from None


def _rows(seen: Mapping[str, Sequence[Figures]], other: str) -> list[dict[str, Any]]:
    rows = []
    for figure in FIGURES:
        if figure not in seen[other][0]:
            continue
        ours = [figures[figure] for figures in seen["leanmoe"]]
        theirs = [figures[figure] for figures in seen[other]]
        rows.append(
            {
                "tool": other,
                "figure": figure,
                **_compared("ours", ours, "theirs", theirs),
            }
        )
    return rows


def show(found: Mapping[str, Any]) -> str:
    """A table of ratios."""
    lines = [f"{'tool':10}{'figure':20}{'ours':>10}{'theirs':>10}{'ratio':>8}  over the rounds"]
    lines += [
        f"{row['tool']:10}{row['figure']:20}{row['ours']:>10.2f}{row['theirs']:>10.2f}"
        f"{row['ratio']:>8.3f}  {row['low']:.3f} to {row['high']:.3f}"
        for row in found["rows"]
    ]
    if found["against_server"]:
        lines += ["", f"{'tool':10}{'figure':20}{'client':>10}{'server':>10}{'ratio':>8}  its own"]
    lines += [
        f"{row['tool']:10}{row['figure']:20}{row['client']:>10.2f}{row['server']:>10.2f}"
        f"{row['ratio']:>8.3f}  {row['low']:.3f} to {row['high']:.3f}"
        for row in found["against_server"]
    ]
    lines += [f"left out, as it is not installed: {name}" for name in found["left_out"]]
    return "\n".join(lines)
