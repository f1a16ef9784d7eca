"""Long answers of a checkpoint, made by our own forward pass in the model's chat template."""

from __future__ import annotations

import torch

from leanmoe_pruning.checkpoints.opening import OpenedModel
from leanmoe_pruning.data.tasks.open_prompts import OpenPrompt
from leanmoe_pruning.evaluation.generation import Pick, continuations, likeliest, sampled
from leanmoe_pruning.evaluation.long_answers import LongAnswer, LongQuestions
from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.forward.skipping import Skipping
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import progress


def own_answers(
    questions: LongQuestions, checkpoint: OpenedModel, skipping: Skipping, compute: str | None
) -> list[LongAnswer]:
    """One answer to each prompt, an end token counted; the whole model is in memory meanwhile."""
    stream, name = DecoderStream(checkpoint, compute), checkpoint.path.name
    with progress(f"{name}: layers", stream.n_layers) as tick:
        model = ResidentModel.load(stream, tick).changed(skipping=skipping)
    chats = [_chat(model, one) for one in questions.prompts]
    pick: Pick = likeliest
    if questions.temperature > 0.0:
        pick = sampled(torch.Generator().manual_seed(questions.seed), questions.temperature)
    with progress(f"{name}: long answers", len(chats)) as tick:
        found = continuations(model, chats, questions.limit, None, pick, tick)
    return [_answer(model, one, ids) for one, ids in zip(questions.prompts, found, strict=True)]


def _chat(model: ResidentModel, one: OpenPrompt) -> list[int]:
    turn = [{"role": "user", "content": one.prompt}]
    return model.tokenizer.encode_chat(turn, "--prompts", answer=True)


def _answer(model: ResidentModel, one: OpenPrompt, ids: list[int]) -> LongAnswer:
    text = model.tokenizer.decode(ids)
    return LongAnswer.of(one.prompt, one.group, text, ids, ids[-1] in model.end_ids)
