"""Every alert as Prometheus judges it: when it fires, when it is silent, whose it is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.chart.rendering import Document, documents_of, one, template
from tests.page_tools import tool

# All releases have one name, as teams that copy a command have. In two something is wrong.
BAD, NAMESPACES = ("models", "lab"), ("models", "lab", "calm")
JOB = "demo-leanmoe"
MINUTES = 200
# Of half an hour for every start; looking back for replicas that answered takes an hour more.
STARTS = "prometheusRule.thresholds.startSeconds=1800"
NEVER = "LeanMoENotStarted"


class Case(NamedTuple):
    """What a release measures: series without namespace and job, and their values by the minute."""

    alert: str
    bad: dict[str, str]
    good: dict[str, str]
    silent_at: int
    fires_at: int
    # Labels beside severity, namespace, job and release.
    labels: dict[str, str] = {}  # noqa: RUF012 - never changed


def _steady(value: float) -> str:
    return f"{value}x{MINUTES}"


def _growing(step: float) -> str:
    return f"0+{step}x{MINUTES}"


def _pods(*values: str, name: str = "up") -> dict[str, str]:
    return {f'{name}{{pod="p{index}"}}': value for index, value in enumerate(values)}


def _gauge(name: str, bad: float, good: float) -> tuple[dict[str, str], dict[str, str]]:
    return _pods(_steady(bad), name=name), _pods(_steady(good), name=name)


def _latency(name: str, *, low: str, high: str) -> tuple[dict[str, str], dict[str, str]]:
    """All in the bucket above the limit, or all in the one below."""

    def buckets(*counts: float) -> dict[str, str]:
        bounds = (low, high, "+Inf")
        return {
            f'{name}_bucket{{pod="p0",le="{bound}"}}': _growing(count)
            for bound, count in zip(bounds, counts, strict=True)
        }

    return buckets(0, 60, 60), buckets(60, 60, 60)


def _errors(share: int) -> dict[str, str]:
    return {
        'http_requests_total{pod="p0",status="5xx"}': _growing(share),
        'http_requests_total{pod="p0",status="2xx"}': _growing(100 - share),
    }


def _skipped(share: int) -> dict[str, str]:
    return {
        'leanmoe_skipped_assignments_total{pod="p0",layer="0"}': _growing(share),
        'leanmoe_routed_assignments_total{pod="p0",layer="0"}': _growing(100),
    }


def _saves_nothing(level: float) -> dict[str, str]:
    return {
        'leanmoe_wrapped_layers{pod="p0",mode="zero"}': _steady(4),
        'leanmoe_skip_level{pod="p0"}': _steady(level),
    }


UP, P0 = _steady(1), {"pod": "p0"}
CASES = (
    Case("LeanMoEDown", _pods("1x30 0x170"), _pods(UP), 34, 37),
    # Nothing was there before: a first load is no outage, however long it takes.
    Case("LeanMoEDown", _pods("0x30 1x30 0x140"), _pods("0x200"), 62, 67),
    # The pods are gone altogether.
    Case("LeanMoEDown", _pods("1x30 _x170"), _pods("_x200"), 34, 41),
    Case(NEVER, _pods(_steady(0)), _pods("0x28 1x170"), 29, 31),
    Case(NEVER, {}, _pods(UP), 29, 31),
    # It goes on where LeanMoEDown, which looks back only so far, ends.
    Case(NEVER, _pods("1x30 0x170"), _pods(UP), 59, 130),
    Case(
        "LeanMoEReplicaDown",
        _pods(_steady(0), UP, UP),
        _pods("0x28 1x170", UP, UP),
        *(29, 31, P0),
    ),
    # A pod that no node has room for has no target.
    Case("LeanMoEReplicaDown", _pods(UP, UP), _pods(UP, UP, "_x28 1x170"), 29, 31),
    Case("LeanMoENotReady", *_gauge("leanmoe_handshake_complete", 0, 1), 1, 3, P0),
    Case(
        "LeanMoERestarting",
        _pods("100x10 200x10 300x10 400x170", name="process_start_time_seconds"),
        _pods("100x10 200x10 300x180", name="process_start_time_seconds"),
        *(28, 40, P0),
    ),
    # As several API processes show it: counters that begin anew.
    Case(
        "LeanMoERestarting",
        _pods("0+9x9 0+9x9 0+9x9 0+9x170", name="vllm:prompt_tokens_total"),
        _pods("0+9x9 0+9x9 0+9x180", name="vllm:prompt_tokens_total"),
        *(28, 40, P0),
    ),
    Case("LeanMoECountsStale", *_gauge("leanmoe_snapshot_age_seconds", 90, 5), 4, 6, P0),
    Case("LeanMoESkippingSavesNothing", _saves_nothing(0.4), _saves_nothing(0), 9, 11, P0),
    Case(
        "LeanMoENonfiniteRouterTokens",
        _pods("0x20 5x180", name="leanmoe_nonfinite_router_tokens_total"),
        _pods(_steady(5), name="leanmoe_nonfinite_router_tokens_total"),
        *(20, 25, P0),
    ),
    Case(
        "LeanMoEQualityBreach",
        _pods("0x20 1x180", name="leanmoe_shadow_breach"),
        _pods(_steady(0), name="leanmoe_shadow_breach"),
        *(20, 25, P0),
    ),
    Case(
        "LeanMoELevelsDiffer",
        _pods(_steady(0.4), _steady(0.2), name="leanmoe_skip_level"),
        _pods(_steady(0.4), _steady(0.4), name="leanmoe_skip_level"),
        *(14, 16),
    ),
    # Half an hour of rates, and half an hour of both.
    Case("LeanMoESkipShareOff", _skipped(60), _skipped(30), 29, 65),
    Case("LeanMoESkipShareOff", _skipped(10), _skipped(38), 29, 65),
    Case("LeanMoEQueueLong", *_gauge("vllm:num_requests_waiting", 30, 10), 9, 11),
    Case("LeanMoEKVCacheFull", *_gauge("vllm:kv_cache_usage_perc", 0.97, 0.9), 14, 16),
    Case(
        "LeanMoEPreemptions",
        _pods(_growing(30), name="vllm:num_preemptions_total"),
        _pods(_growing(3), name="vllm:num_preemptions_total"),
        *(14, 30),
    ),
    Case(
        "LeanMoESlowFirstToken",
        *_latency("vllm:time_to_first_token_seconds", low="1", high="10"),
        *(9, 25),
    ),
    Case(
        "LeanMoESlowTokens",
        *_latency("vllm:inter_token_latency_seconds", low="0.1", high="1"),
        *(9, 25),
    ),
    Case("LeanMoEErrors", _errors(10), _errors(2), 4, 15),
)


def _rules(namespace: str) -> Document:
    limits = f"{STARTS},prometheusRule.thresholds.skipShare=0.3,prometheusRule.enabled=true"
    pods = "replicas=3,model.storage.accessModes={ReadWriteMany}"
    sets = ("--set", limits, "--set", pods)
    done = template("--namespace", namespace, *sets, "--show-only", "templates/prometheusrule.yaml")
    assert done.returncode == 0, done.stderr
    spec: Document = one(documents_of(done.stdout), "PrometheusRule")["spec"]
    return spec


@pytest.fixture(scope="module")
def rules() -> dict[str, Document]:
    return {namespace: _rules(namespace) for namespace in NAMESPACES}


def _input(namespace: str, series: dict[str, str]) -> list[Document]:
    own = f'namespace="{namespace}",job="{JOB}",'
    return [
        {"series": name.replace("{", "{" + own, 1), "values": values}
        for name, values in series.items()
    ]


def _expected(rules: dict[str, Document], case: Case, namespace: str) -> Document:
    (rule,) = [one for one in _alerts(rules[namespace]) if one["alert"] == case.alert]
    identity = {"namespace": namespace, "job": JOB, "release": "demo"}
    labels = {"severity": rule["labels"]["severity"], **identity, **case.labels}
    return {"exp_labels": labels, "exp_annotations": rule["annotations"]}


def _alerts(spec: Document) -> list[Document]:
    (group,) = spec["groups"]
    rules: list[Document] = group["rules"]
    return rules


def _test(rules: dict[str, Document], case: Case, bad: tuple[str, ...] = BAD) -> Document:
    """The releases in ``bad`` measure what is bad, the others what is good."""
    series = {name: case.bad if name in bad else case.good for name in rules}
    expected = {
        case.silent_at: [],
        case.fires_at: [_expected(rules, case, name) for name in bad],
    }
    return {
        "name": f"{case.alert} {bad}",
        "interval": "1m",
        "input_series": [one for name in rules for one in _input(name, series[name])],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": alerts}
            for minute, alerts in expected.items()
        ],
    }


def _judged(folder: Path, rules: dict[str, Document], tests: list[Document]) -> str:
    """What `promtool test rules` has to say; nothing where all is as expected."""
    for namespace, spec in rules.items():
        (folder / f"{namespace}.json").write_text(json.dumps(spec))
    files = [f"{namespace}.json" for namespace in rules]
    content = {"rule_files": files, "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.json").write_text(json.dumps(content))
    promtool = tool("promtool", "prometheus")
    command = [promtool, "test", "rules", str(folder / "tests.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_every_alert_fires_when_it_should_and_names_its_release(rules, tmp_path):
    tests = [_test(rules, case) for case in CASES]
    assert _judged(tmp_path, rules, tests) == ""


def test_every_alert_is_tried(rules):
    assert {case.alert for case in CASES} == {one["alert"] for one in _alerts(rules["lab"])}


def test_a_rule_that_fired_for_another_release_would_be_seen(rules, tmp_path):
    """Without its matchers an alert of one release is one of the other, too."""
    case = next(case for case in CASES if case.alert == "LeanMoENotReady")
    text = json.dumps(rules).replace(f'{{namespace=\\"lab\\",job=\\"{JOB}\\"}}', "")
    said = _judged(tmp_path, json.loads(text), [_test(rules, case, ("models",))])
    assert "LeanMoENotReady" in said
    assert 'namespace="lab"' in said


def test_no_pods_are_no_outage_where_none_may_be_wanted(tmp_path):
    done = template("--set", f"prometheusRule.enabled=true,replicas=0,{STARTS}")
    rules = {"models": one(documents_of(done.stdout), "PrometheusRule")["spec"]}
    stopped = _pods("1x30 _x170")
    dead = Case("LeanMoEDown", _pods("1x30 0x170"), {}, 34, 37)
    quiet = [_test(rules, Case(name, {}, stopped, 34, 80), ()) for name in (dead.alert, NEVER)]
    assert _judged(tmp_path, rules, [_test(rules, dead, ("models",)), *quiet]) == ""


def test_rules_load_without_a_remark(rules, tmp_path):
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(rules["models"]))
    command = [tool("promtool", "prometheus"), "check", "rules", "--lint-fatal", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
