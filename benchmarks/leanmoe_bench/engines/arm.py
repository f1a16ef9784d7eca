"""One arm of a comparison: an offline engine that is timed.

The same code runs stock vLLM (no plugin) and ours; only the environment differs.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from vllm import LLM, SamplingParams

Answer = dict[str, Any]


class Arm:
    """An offline engine that decodes and prefills random tokens on command."""

    def __init__(self, model: str, engine: dict[str, Any], vocabulary: int, seed: int) -> None:
        self._draw = np.random.default_rng
        self._seed = seed
        self._vocabulary = vocabulary
        self._engine = LLM(
            model=model, skip_tokenizer_init=True, seed=seed, disable_log_stats=False, **engine
        )

    def _prompts(self, count: int, length: int, turn: int) -> list[dict[str, Any]]:
        """The same in both arms at a turn: how many experts a batch reads depends on its text."""
        random = self._draw([self._seed, turn])
        ids = random.integers(3, self._vocabulary, size=(count, length))
        return [{"prompt_token_ids": row.tolist()} for row in ids]

    def _generate(
        self,
        prompts: list[dict[str, Any]],
        tokens: int,
        extras: list[dict[str, Any] | None] | None = None,
        temperature: float = 0.0,
    ) -> tuple[float, list[Any]]:
        sampling = [
            SamplingParams(
                temperature=temperature,
                max_tokens=tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args=extra,
            )
            for extra in extras or [None] * len(prompts)
        ]
        start = time.perf_counter()
        outputs = self._engine.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - start, outputs

    def decode(self, batch: int, tokens: int, turn: int, prompt: int = 4) -> Answer:
        """Tokens per second of ``tokens`` decode steps of ``batch`` sequences, prefill apart."""
        # Sampled: greedy text of a random model soon repeats itself, all sequences the same few
        # tokens, and a batch would read fewer experts than any real one.
        _, outputs = self._generate(self._prompts(batch, prompt, turn), 1 + tokens, temperature=1.0)
        # The engine's own clock: all sequences share the steps between these two.
        start = max(output.metrics.first_token_ts for output in outputs)
        end = max(output.metrics.last_token_ts for output in outputs)
        return {"tokens_per_second": batch * tokens / (end - start)}

    def prefill(self, length: int, turn: int) -> Answer:
        """Prompt tokens per second of one prompt of ``length`` tokens."""
        seconds, _ = self._generate(self._prompts(1, length, turn), 1)
        return {"tokens_per_second": length / seconds}

    def generate(
        self,
        prompts: list[list[int]],
        tokens: int,
        extras: list[dict[str, Any] | None] | None = None,
    ) -> Answer:
        """Greedy continuations of given prompts, each with its extra sampling arguments."""
        _, outputs = self._generate([{"prompt_token_ids": ids} for ids in prompts], tokens, extras)
        return {"ids": [list(output.outputs[0].token_ids) for output in outputs]}

    def counters(self, names: list[str]) -> Answer:
        """vLLM's own counters, each summed over its labels."""
        metrics = self._engine.get_metrics()
        return {"values": [sum(m.value for m in metrics if m.name == name) for name in names]}

    def rpc(self, method: str, args: list[Any]) -> Answer:
        """A worker method on every rank."""
        return {"results": self._engine.collective_rpc(method, args=tuple(args))}
