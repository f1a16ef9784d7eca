"""What ``leanmoe eval`` prints for a person."""

from __future__ import annotations

from leanmoe.command import Result
from leanmoe_pruning.amounts import show_share


def show(result: Result) -> str:
    """What was judged, a table each."""
    parts = {"domains": _show_texts, "tasks": _show_tasks, "long": _show_long}
    return "\n\n".join(table(result) for key, table in parts.items() if key in result)


def _show_texts(result: Result) -> str:
    lines = ["domain        perplexity        95 % interval   tokens"]
    for name, found in result["domains"].items():
        line = f"{name:12}  {found['perplexity']:10.3f}  {_interval(found):>19}  "
        line += f"{found['tokens']:7}"
        if "kld" in found:
            line += f"   KLD {found['kld']:.5f}   top-1 same {show_share(found['top1_agreement'])}"
        lines.append(line)
    return "\n".join([*lines, *(_show_group_of(*one) for one in result["groups"].items())])


def _show_group_of(name: str, found: Result) -> str:
    """Domains together, by language."""
    line = f"{name:6} of {found['domains']:3}  {found['perplexity']:10.3f}  "
    none = f"{found['of_one_window']} of one window"
    line += f"{_interval(found, none):>19}         "
    if "ratio" in found:
        ratio = found["ratio"]
        line += f"   times the other's {ratio['mean']:.4f} ({_interval(ratio, none)})"
    if "kld" in found:
        line += f"   KLD {found['kld']:.5f}   top-1 same {show_share(found['top1_agreement'])}"
    return line


def _interval(found: Result, none: str = "one window") -> str:
    return none if found["low"] is None else f"{found['low']:.3f} .. {found['high']:.3f}"


def _show_tasks(result: Result) -> str:
    lines = ["task              items  accuracy   95 % interval   per byte"]
    for name, found in result["tasks"].items():
        lines.append(_show_task(name, found))
    return "\n".join(lines)


def _show_task(name: str, found: Result) -> str:
    if "accuracy" not in found:
        figures = ", ".join(f"{key} {value:.4f}" for key, value in found.get("metrics", {}).items())
        return f"{name:16}  {found['items']:5}  {figures}"
    line = f"{name:16}  {found['items']:5}  {found['accuracy']:8.1%}  "
    line += f"{found['low']:6.1%} .. {found['high']:6.1%}"
    line += f"  {found['per_byte']['accuracy']:8.1%}" if "per_byte" in found else " " * 10
    if "against" in found:
        other = found["against"]
        line += (
            f"   other {other['accuracy']:.1%}, difference {other['difference']:+.1%} "
            f"({other['low']:+.1%} .. {other['high']:+.1%})"
        )
        line += f", same answer {other['same_answer']:.0%}" if "same_answer" in other else ""
    return line


def _show_long(result: Result) -> str:
    lines = ["long answers   count    tokens   end by themselves    repeat   end in a loop"]
    for name, found in result["long"]["groups"].items():
        lines.append(_show_group(name, found))
        if "against" in found:
            lines.append(_show_gaps(found["against"]))
    return "\n".join(lines)


def _show_group(name: str, found: Result) -> str:
    shares = [f"{found[key]['mean']:.1%}" for key in ("ended", "repeated", "loops")]
    line = f"{name:13}  {found['answers']:5}  {found['tokens']['mean']:8.1f}"
    return f"{line}  {shares[0]:>18}  {shares[1]:>8}  {shares[2]:>14}"


def _show_gaps(gaps: Result) -> str:
    """Differences from the other model, with 95 % intervals."""
    said = [f"tokens {_gap(gaps['tokens'], '+.1f')}"]
    words = {"ended": "end", "repeated": "repeat", "loops": "loop"}
    said += [f"{word} {_gap(gaps[key], '+.1%')}" for key, word in words.items()]
    return f"  less the other's: {', '.join(said)}; same answer {gaps['same_answer']:.0%}"


def _gap(found: Result, form: str) -> str:
    if found["low"] is None:
        return f"{found['mean']:{form}}"
    return f"{found['mean']:{form}} ({found['low']:{form}} .. {found['high']:{form}})"
