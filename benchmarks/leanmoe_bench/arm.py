"""One arm of a comparison: an engine in its own process, driven line by line over pipes.

Reads one JSON command per line on stdin, answers one per line on the descriptor
named in its first argument, so that nothing an engine prints can mix in. The same
code runs stock vLLM (no plugin) and ours; only the environment differs.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any

Answer = dict[str, Any]


class Arm:
    """An offline engine that decodes and prefills random tokens on command."""

    def __init__(self, model: str, engine: dict[str, Any], vocabulary: int, seed: int) -> None:
        import numpy as np
        from vllm import LLM

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
        from vllm import SamplingParams

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


def main(arm_class: type[Arm] = Arm) -> int:
    answers = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    arm: Arm | None = None
    for line in sys.stdin:
        command = json.loads(line)
        operation = command.pop("op")
        try:
            if operation == "start":
                # What ends with an engine is the process's, and must not end under the next one.
                arm = None
                gc.collect()
                arm = arm_class(**command)
                answer: Answer = {"ready": True}
            else:
                answer = getattr(arm, operation)(**command)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
