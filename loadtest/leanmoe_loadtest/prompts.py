"""English prompts for load that looks like chat: short questions, longer tasks, varied lengths."""

from __future__ import annotations

PROMPTS: tuple[str, ...] = (
    "What is the capital of France, and what is it known for?",
    "Explain in two sentences why the sky is blue.",
    "Write a short thank-you note to a neighbour who watered my plants.",
    "List five things to check before a long drive.",
    "How does a heat pump work? Keep it simple.",
    "Summarise the plot of a story about a lighthouse keeper who finds a letter in a bottle.",
    "What is the difference between a virus and a bacterium?",
    "Give me a recipe for tomato soup that takes half an hour.",
    "A train leaves at 9:40 and arrives at 13:05. How long does the journey take?",
    "Write a function in C that returns the larger of two integers.",
    "Which is heavier, a kilogram of feathers or a kilogram of iron? Explain your answer.",
    "Describe a quiet morning in a small harbour town in about one hundred words.",
    "My meeting runs over every week. Suggest three ways to end it on time, with one sentence on "
    "why each of them works and one on what could go wrong with it.",
    "Rewrite this so that it sounds friendlier: The report is late again. Send it today. I do not "
    "want to ask a third time, and neither does the customer.",
    "I have two hours on Saturday to teach a ten-year-old how to play chess. Plan the lesson, "
    "with the time for each part and one small exercise at the end of every part.",
    "Compare renting a flat with buying one for somebody who may move to another city within the "
    "next three years. Name the costs that people forget.",
)
