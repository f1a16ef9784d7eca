"""From settings to a plan: files read, arrivals drawn, everything checked before a byte is sent."""

from __future__ import annotations

from pathlib import Path

from leanmoe.errors import InputError
from leanmoe_loadtest.arrivals import parse_arrivals
from leanmoe_loadtest.lengths import parse_lengths
from leanmoe_loadtest.level_mix import parse_levels
from leanmoe_loadtest.plan import Plan
from leanmoe_loadtest.settings import Settings
from leanmoe_loadtest.source import BUILTIN, SYNTHETIC, load_prompts
from leanmoe_loadtest.trace import TraceRequest, read_trace

_TRACE = "trace:"
DEFAULT_USERS = 4
DEFAULT_SECONDS = 30.0


def arrivals_of(settings: Settings) -> str | None:
    """The arrivals of an open loop as text; ``None`` for a closed one."""
    return settings.arrivals if settings.rate is None else f"poisson:{settings.rate:g}"


def make_plan(settings: Settings, url: str, model: str, seed: int) -> Plan:
    """The plan of a load; ``InputError`` where a setting or a file it names cannot be used."""
    trace = _trace(settings)
    schedule, duration = _schedule(settings, trace, seed)
    source = prompt_source(settings, trace)
    return Plan(
        url=url,
        model=model,
        endpoint=settings.endpoint,
        seed=seed,
        max_tokens=settings.max_tokens,
        ignore_eos=settings.ignore_eos,
        keep_text=settings.keep_text,
        request_seconds=settings.request_seconds,
        duration=duration,
        users=(settings.users or DEFAULT_USERS) if schedule is None else None,
        max_requests=settings.max_requests,
        schedule=schedule,
        max_concurrency=settings.max_concurrency,
        prompts=load_prompts(source, settings.endpoint),
        input_tokens=_lengths(settings.input_tokens, "--input-tokens"),
        output_tokens=_lengths(settings.output_tokens, "--output-tokens"),
        trace_lengths=_trace_lengths(trace),
        levels=None if settings.levels is None else parse_levels(settings.levels),
    )


def prompt_source(settings: Settings, trace: list[TraceRequest] | None) -> str:
    """Where the prompts come from: what is named, or made-up text where lengths are."""
    measured = settings.input_tokens is not None or (trace and trace[0].input_tokens is not None)
    source = settings.prompts or (SYNTHETIC if measured else BUILTIN)
    if source == SYNTHETIC and not measured:
        raise InputError("synthetic prompts need a length; give --input-tokens, such as 512")
    if source != SYNTHETIC and settings.input_tokens is not None:
        raise InputError("--input-tokens is the length of synthetic prompts; leave out --prompts")
    return source


def _trace(settings: Settings) -> list[TraceRequest] | None:
    if settings.arrivals is None or not settings.arrivals.startswith(_TRACE):
        return None
    path = Path(settings.arrivals.removeprefix(_TRACE))
    trace = read_trace(path, settings.trace_unit, settings.trace_speed)
    if len({(one.input_tokens is None, one.output_tokens is None) for one in trace}) > 1:
        raise InputError(f"{path}: some requests have lengths and others none; give all or none")
    if settings.duration is not None:
        trace = [one for one in trace if one.seconds < settings.duration]
    return trace[: settings.max_requests]


def _schedule(
    settings: Settings, trace: list[TraceRequest] | None, seed: int
) -> tuple[list[float] | None, float]:
    """The times to send at, if the loop is open, and for how many seconds it runs."""
    duration = settings.duration or DEFAULT_SECONDS
    text = arrivals_of(settings)
    if trace is not None:
        return [one.seconds for one in trace], settings.duration or trace[-1].seconds
    if text is None:
        return None, duration
    times = parse_arrivals(text).times(duration, seed)[: settings.max_requests]
    if not times:
        raise InputError(f"arrivals {text!r} send nothing within {duration:g} s; raise one of them")
    return times, duration


def _trace_lengths(trace: list[TraceRequest] | None) -> list[tuple[int | None, int | None]] | None:
    lengths = [(one.input_tokens, one.output_tokens) for one in trace or ()]
    return lengths if any(one != (None, None) for one in lengths) else None


def _lengths(text: str | None, where: str) -> str | None:
    if text is not None:
        parse_lengths(text, where)
    return text
