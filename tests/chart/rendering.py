"""Renders the chart as a user would: the helm binary, one values file, parsed documents."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "leanmoe"
CI = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").iterdir())}
HELMS = ("helm", "helm3")
NAMESPACE = "models"
# What each helm assumes by itself differs; the newest that the schemas know is taken.
KUBERNETES = "1.37.0"
Document = dict[str, Any]


def tool(name: str) -> str:
    """A program that `make install` put beside this Python."""
    path = Path(sys.prefix, "bin", name)
    assert path.exists(), f"{path} is missing; run `python packaging/chart_tools.py {sys.prefix}`"
    return str(path)


def run_helm(*arguments: str, helm: str = "helm") -> subprocess.CompletedProcess[str]:
    """One call of helm, its output kept."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"HOME": home, "PATH": "/usr/bin:/bin"}
        return subprocess.run(
            [tool(helm), *arguments], capture_output=True, text=True, check=False, env=environment
        )


def template(
    *arguments: str, helm: str = "helm", kubernetes: str = KUBERNETES
) -> subprocess.CompletedProcess[str]:
    """`helm template` of the chart as release `demo`."""
    release = ("demo", str(CHART), "--namespace", NAMESPACE, "--kube-version", kubernetes)
    return run_helm("template", *release, *arguments, helm=helm)


@cache
def rendered_text(name: str, helm: str = "helm", kubernetes: str = KUBERNETES) -> str:
    """What the values file ``ci/NAME-values.yaml`` renders to."""
    done = template("--values", str(CI[name]), helm=helm, kubernetes=kubernetes)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents_of(text: str) -> list[Document]:
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def _doubled(node: yaml.Node) -> Iterator[str]:
    """Keys that stand twice in one map; loaders take the last of them and say nothing."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield f"{key.value}{key.start_mark}"
            seen.add(key.value)
            yield from _doubled(value)
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _doubled(one)


def strictly(text: str) -> list[Document]:
    """The documents of a text in which no key stands twice."""
    nodes = [node for node in yaml.compose_all(text, yaml.CSafeLoader) if node is not None]
    doubled = [key for node in nodes for key in _doubled(node)]
    assert not doubled, f"stand twice: {doubled}"
    return documents_of(text)


def rendered(name: str, kubernetes: str = KUBERNETES) -> list[Document]:
    """The documents of ``ci/NAME-values.yaml``."""
    text = rendered_text(name, kubernetes=kubernetes)
    return documents_of(text)


def rendered_with(*sets: str, base: str = "defaults") -> list[Document]:
    """The documents of a ci file with ``--set`` on top."""
    done = template("--values", str(CI[base]), *[part for one in sets for part in ("--set", one)])
    assert done.returncode == 0, done.stderr
    return documents_of(done.stdout)


def all_of(documents: list[Document], kind: str) -> list[Document]:
    """Every document of a kind."""
    return [document for document in documents if document["kind"] == kind]


def one(documents: list[Document], kind: str, name: str | None = None) -> Document:
    """The only document of a kind (and name)."""
    found = [
        document
        for document in all_of(documents, kind)
        if name is None or document["metadata"]["name"] == name
    ]
    assert len(found) == 1, f"{len(found)} documents of kind {kind}"
    return found[0]


def service(documents: list[Document]) -> Document:
    """The Service that clients use; others are the fleet's or the values' own."""
    (found,) = [one for one in all_of(documents, "Service") if is_servers(one)]
    return found


def is_servers(document: Document) -> bool:
    """Whether the document is there for the serving pods, by its label."""
    return document["metadata"]["labels"].get("app.kubernetes.io/component") == "server"


def pod_templates(document: Document) -> list[Document]:
    """The pod templates inside a document, or a pod as one."""
    spec = document.get("spec", {})
    if document["kind"] == "Pod":
        return [{"metadata": document["metadata"], "spec": spec}]
    if document["kind"] == "LeaderWorkerSet":
        group = spec["leaderWorkerTemplate"]
        return [group["leaderTemplate"], group["workerTemplate"]]
    return [spec["template"]] if document["kind"] in ("Deployment", "Job") else []


def containers(pod: Document, *, init: bool = True) -> list[Document]:
    """All containers of a pod template, in the order they start."""
    spec = pod["spec"]
    return [*(spec.get("initContainers", []) if init else []), *spec["containers"]]


def server_pod(documents: list[Document]) -> Document:
    """The pod template that holds the server."""
    pods = [pod for document in documents for pod in pod_templates(document)]
    return next(pod for pod in pods if pod["spec"]["containers"][0]["name"] == "server")


def server(documents: list[Document]) -> Document:
    """The server's container."""
    found: Document = server_pod(documents)["spec"]["containers"][0]
    return found


def variables(container: Document) -> Document:
    """Plain environment variables of a container by name."""
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}
