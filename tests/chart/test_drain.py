"""A stop: first the endpoints know, then the server drains, and it has the time for both."""

from __future__ import annotations

import ast

import pytest

from tests.chart.rendering import CI, ROOT, rendered, rendered_with, server, server_pod


def _constant(file: str, name: str) -> float:
    tree = ast.parse((ROOT / "server/leanmoe_server" / file).read_text())
    found = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    ]
    return float(ast.literal_eval(found[0]))


def _seconds(documents: list) -> tuple[int, int, int]:
    """(before SIGTERM, for answers, in all)"""
    container = server(documents)
    drain = [one for one in container["args"] if one.startswith("--drain-seconds=")]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = server_pod(documents)["spec"]["terminationGracePeriodSeconds"]
    return before, int(drain[0].partition("=")[2]), grace


@pytest.mark.parametrize("name", CI)
def test_the_grace_period_holds_all_that_the_server_does_after_sigterm(name):
    before, drain, grace = _seconds(rendered(name))
    # Aborting, waiting for what was aborted, closing connections.
    after = 2 * _constant("drain.py", "ABORT_SECONDS") + _constant(
        "vllm_engine.py", "_CLOSE_SECONDS"
    )
    assert before > 0
    assert grace >= before + drain + after


def test_the_chart_refuses_less_time_than_the_server_needs_after_the_drain():
    documents = rendered_with("shutdown.stopSeconds=20")
    before, drain, grace = _seconds(documents)
    after = 2 * _constant("drain.py", "ABORT_SECONDS") + _constant(
        "vllm_engine.py", "_CLOSE_SECONDS"
    )
    assert grace - before - drain == 20 >= after


def test_seconds_are_the_users():
    assert _seconds(rendered("settings")) == (20, 300, 380)


def test_a_pod_leaves_the_endpoints_before_it_refuses():
    """The sleep covers several looks of the readiness probe and of whoever reads endpoints."""
    before, _, _ = _seconds(rendered("defaults"))
    probe = server(rendered("defaults"))["readinessProbe"]
    assert before >= probe["periodSeconds"] * probe["failureThreshold"]


def test_followers_outlive_their_leader():
    leader, follower = [
        pod["spec"]
        for document in rendered("multi-node-native")
        if document["kind"] == "LeaderWorkerSet"
        for pod in document["spec"]["leaderWorkerTemplate"].values()
        if isinstance(pod, dict)
    ]
    waits = follower["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert waits >= 15 + 120
    assert follower["terminationGracePeriodSeconds"] >= leader["terminationGracePeriodSeconds"] - 0
