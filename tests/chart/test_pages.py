"""Values on the pages render, and what the pages name is what the chart makes."""

from __future__ import annotations

import re

import pytest

from tests.chart.rendering import CI, ROOT, one, rendered, rendered_with, template

PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("kubernetes", "operations")}
VALUES = re.findall(r"```yaml\n(# values: ([^\n]+)\n.*?)```", PAGES["kubernetes"], re.DOTALL)


def test_there_are_values_to_try():
    assert len(VALUES) >= 6


@pytest.mark.parametrize(("text", "title"), VALUES, ids=[title for _, title in VALUES])
def test_values_on_the_page_render(text, title, tmp_path):
    file = tmp_path / "values.yaml"
    file.write_text(text)
    done = template("--values", str(file))
    assert done.returncode == 0, f"{title}: {done.stderr}"


def test_settings_on_the_pages_exist():
    """Whatever stands in backticks and begins like a setting is in the chart's README."""
    readme = (ROOT / "helm" / "leanmoe" / "README.md").read_text()
    groups = "model|prepare|server|probes|shutdown|autoscaling|prometheusRule|secrets|multiNode"
    for page, text in PAGES.items():
        for setting in re.findall(rf"`((?:{groups})\.[A-Za-z.]+)", text):
            assert f"`{setting}" in readme, f"{page}.md names {setting}"


def test_the_alerts_on_the_page_are_the_charts():
    (group,) = one(rendered("monitoring"), "PrometheusRule")["spec"]["groups"]
    rows = re.findall(r"^\| \[(\w+)\]\(runbook\.md#(\w+)\) \| (\w+) \|", PAGES["operations"], re.M)
    assert rows == [
        (rule["alert"], rule["alert"].lower(), rule["labels"]["severity"])
        for rule in group["rules"]
    ]


def test_limits_on_the_page_are_the_defaults():
    documents = rendered_with("prometheusRule.enabled=true")
    (group,) = one(documents, "PrometheusRule")["spec"]["groups"]
    limits = {rule["alert"]: rule["expr"].split()[-1] for rule in group["rules"]}
    assert (limits["LeanMoEQueueLong"], limits["LeanMoEKVCacheFull"]) == ("20", "0.95")
    assert (limits["LeanMoESlowFirstToken"], limits["LeanMoESlowTokens"]) == ("5", "0.2")
    assert (limits["LeanMoEErrors"], limits["LeanMoEPreemptions"]) == ("0.05", "0.1")


def test_ci_files_on_the_pages_exist():
    named = {
        name for text in PAGES.values() for name in re.findall(r"ci/([a-z-]+)-values\.yaml", text)
    }
    assert named <= set(CI)
