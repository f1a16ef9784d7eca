"""Values meant to break the chart render to what a strict parser and strict validation take."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.chart.rendering import (
    CHART,
    CI,
    KUBERNETES,
    NAMESPACE,
    all_of,
    documents_of,
    one,
    run_helm,
    server,
    server_pod,
    strictly,
    template,
)
from tests.chart.strictness import check

HOSTILE = {path.stem: path for path in sorted((Path(__file__).parent / "hostile").iterdir())}


def _rendered(name: str) -> str:
    done = template("--values", str(HOSTILE[name]))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_values_enough():
    assert len(HOSTILE) >= 18
    assert len(HOSTILE) + len(CI) >= 40


@pytest.mark.parametrize("name", HOSTILE)
def test_what_renders_validates_and_no_key_stands_twice(name):
    documents = strictly(_rendered(name))
    for document in documents:
        check(document, KUBERNETES)
    keys = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(keys) == len(set(keys))
    assert all(len(key[1]) <= 63 for key in keys)


def test_text_comes_out_as_it_went_in():
    values = yaml.safe_load(HOSTILE["quotes-and-braces"].read_text())
    documents = documents_of(_rendered("quotes-and-braces"))
    notes = server_pod(documents)["metadata"]["annotations"]
    assert values["podAnnotations"].items() <= notes.items()
    settings = one(documents, "ConfigMap", "demo-leanmoe-settings")["data"]
    assert values["server"]["env"].items() <= settings.items()
    file = yaml.safe_load(one(documents, "ConfigMap", "demo-leanmoe-files")["data"]["vllm.yaml"])
    assert file == values["server"]["vllm"]
    assert f"--served-model-name={values['server']['servedModelName']}" in server(documents)["args"]


def test_a_label_of_ones_own_wins_where_it_may_and_identity_stays():
    documents = documents_of(_rendered("labels-everywhere"))
    labels = server_pod(documents)["metadata"]["labels"]
    assert (labels["team"], labels["app.kubernetes.io/part-of"]) == ("two", "theirs")
    (group,) = one(documents, "PrometheusRule")["spec"]["groups"]
    alert = group["rules"][0]["labels"]
    assert (alert["severity"], alert["team"], alert["release"]) == ("page", "six", "demo")
    monitor = one(documents, "ServiceMonitor")["metadata"]["labels"]
    assert (monitor["release"], monitor["team"]) == ("prometheus", "four")


def test_limits_are_written_out():
    (group,) = one(documents_of(_rendered("thresholds")), "PrometheusRule")["spec"]["groups"]
    expressions = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    assert expressions["LeanMoEQueueLong"].endswith("> 2000000")
    assert expressions["LeanMoESlowFirstToken"].endswith("> 0.00001")


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> Path:
    """Somebody's chart that takes this one as a dependency, twice."""
    folder = tmp_path_factory.mktemp("parent")
    for name in ("leanmoe", "other"):
        copy = folder / "charts" / name
        shutil.copytree(CHART, copy, ignore=shutil.ignore_patterns("ci"))
        if name == "other":
            text = (copy / "Chart.yaml").read_text()
            (copy / "Chart.yaml").write_text(text.replace("name: leanmoe", "name: other"))
    wanted = [
        {"name": name, "version": "*", "condition": f"{name}.enabled"}
        for name in ("leanmoe", "other")
    ]
    chart = {"apiVersion": "v2", "name": "parent", "version": "0.1.0", "dependencies": wanted}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(chart))
    return folder


@pytest.mark.parametrize("helm", ["helm", "helm3"])
@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_a_dependency_that_can_be_switched_off(parent, helm, enabled):
    sets = f"leanmoe.enabled={str(enabled).lower()},global.imageRegistry=a"
    flags = ("--namespace", NAMESPACE, "--kube-version", KUBERNETES, "--set", sets)
    done = run_helm("template", "demo", str(parent), *flags, helm=helm)
    assert done.returncode == 0, done.stderr
    names = {one["metadata"]["name"] for one in all_of(strictly(done.stdout), "Deployment")}
    assert names == ({"demo-leanmoe", "demo-other"} if enabled else {"demo-other"})
