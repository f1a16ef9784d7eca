"""Other load generators beside ours: what each is told, and what it reports under our names.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from leanmoe.errors import InputError, LeanMoEError

STREAMS, TOKENS = 4, 32
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
Figures = dict[str, float]
Tool = Callable[["Target"], Figures]


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
        rows = [{"prompt": text, "output_tokens_count": TOKENS} for text in texts]
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


def leanmoe(target: Target) -> Figures:
    command = [sys.executable, "-m", "leanmoe.cli", "loadtest", target.url, "--json"]
    # Closed loop until the number is reached, however long it takes.
    command += [
        "--users",
        str(STREAMS),
        "--max-requests",
        str(target.requests),
        "--duration",
        "3600",
    ]
    command += ["--max-tokens", str(TOKENS), "--ignore-eos", "--prompts", str(target.prompts())]
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


def vllm(target: Target) -> Figures:
    result = target.work / "vllm.json"
    program = str(Path(sys.executable).with_name("vllm"))
    options = {
        "--backend": "openai-chat",
        "--base-url": target.url,
        "--endpoint": "/v1/chat/completions",
        "--model": target.model,
        "--dataset-name": "custom",
        "--dataset-path": str(target.prompts()),
        "--num-prompts": str(target.requests),
        "--max-concurrency": str(STREAMS),
        "--percentile-metrics": "ttft,tpot,itl,e2el",
        "--metric-percentiles": "50,95",
        "--temperature": "0",
        "--custom-output-len": str(TOKENS),
        # It must have one and counts prompts with it; answers are counted by the server.
        "--tokenizer": str(target.tokenizer()),
        "--result-dir": str(target.work),
        "--result-filename": result.name,
    }
    flags = ["--ignore-eos", "--skip-chat-template", "--save-result", "--save-detailed"]
    pairs = [part for pair in options.items() for part in pair]
    _output([program, "bench", "serve", *pairs, *flags, "--disable-tqdm"], target.work)
    return _of_vllm(json.loads(result.read_text(encoding="utf-8")))


def _of_vllm(found: Mapping[str, Any]) -> Figures:
    """ITL from the gaps of each request, without the one behind the role alone."""
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


def guidellm(named: str) -> Tool:
    """The program of that name or path."""
    program = _program(named)

    def run(target: Target) -> Figures:
        result = target.work / "guidellm.json"
        result.unlink(missing_ok=True)
        options = {
            "--backend": f"kind=openai_http,target={target.url},model={target.model}",
            "--profile": f"kind=concurrent,streams={STREAMS}",
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


def _program(text: str) -> str:
    found = shutil.which(text)
    if found is None:
        raise InputError(f"--guidellm {text!r} is no program; give the path of guidellm")
    return str(Path(found).absolute())
