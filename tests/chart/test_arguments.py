"""What the chart passes is what `leanmoe`, vLLM, hf and ray take: asked of their own parsers."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
from vllm.utils.argparse_utils import FlexibleArgumentParser

from leanmoe.command import parse, parser_of
from leanmoe.seams import find
from leanmoe_pruning.commands import curve, prune, score
from leanmoe_server import refusals, seams
from leanmoe_server.command import COMMAND, _own_options, _vllm_arguments
from leanmoe_server.config_file import check_config_files
from leanmoe_server.vllm_engine import parse_vllm_arguments
from tests.chart.rendering import (
    CHART,
    CI,
    Document,
    containers,
    one,
    rendered,
    server,
    service,
    tool,
    variables,
)

STEPS = {"score": score.COMMAND, "prune": prune.COMMAND, "curve": curve.COMMAND}


@pytest.fixture
def placed(tmp_path):
    """Arguments of a container as it would see them: files mounted, variables filled in."""

    def place(documents: list[Document], container: Document) -> list[str]:
        prefix = service(documents)["metadata"]["name"]
        files = one(documents, "ConfigMap", f"{prefix}-files")["data"]
        (tmp_path / "vllm.yaml").write_text(files["vllm.yaml"])
        known = {"/scripts/": f"{tmp_path}/", "$(LWS_LEADER_ADDRESS)": "127.0.0.1"}
        known["$(LWS_WORKER_INDEX)"] = "1"
        arguments = list(container["args"])
        for old, new in known.items():
            arguments = [argument.replace(old, new) for argument in arguments]
        return arguments

    return place


@pytest.mark.parametrize("name", CI)
def test_the_server_takes_its_arguments(name, placed, monkeypatch):
    # Where pods have GPUs; a build for CPUs refuses what only they can do.
    monkeypatch.setattr(refusals, "is_cpu_build", lambda: False)
    documents = rendered(name)
    command, *arguments = placed(documents, server(documents))
    assert command == COMMAND.name
    ours = parse(COMMAND, arguments)
    check_config_files(ours.rest, _own_options())
    theirs = parse_vllm_arguments(_vllm_arguments(ours))
    assert theirs.model == ours.model
    assert theirs.host == "0.0.0.0"
    assert theirs.port == 8000
    assert theirs.served_model_name


def test_options_of_the_server_are_no_settings_of_vllm():
    """Each would be refused by the server itself, when the pod is there."""
    told = (CHART / "templates" / "_validate.tpl").read_text()
    [listed] = re.findall(r"\$serves := list (.*) }}", told)
    elsewhere = {"--help", "--json", "--verbose", "--host", "--port", "--seed"}
    own = {option for option in _own_options() if option.startswith("--")}
    assert {f"--{name}" for name in re.findall(r'"(.*?)"', listed)} == own - elsewhere


def test_vllms_settings_arrive(placed):
    documents = rendered("settings")
    theirs = parse_vllm_arguments(
        _vllm_arguments(parse(COMMAND, placed(documents, server(documents))[1:]))
    )
    assert theirs.max_model_len == 4096
    assert theirs.gpu_memory_utilization == 0.92
    assert theirs.enable_prefix_caching is True
    assert theirs.dtype == "bfloat16"


def test_leader_and_follower_describe_the_same_engine(placed):
    documents = rendered("multi-node-native")
    group = one(documents, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    arguments = [
        placed(documents, group[key]["spec"]["containers"][0])
        for key in ("leaderTemplate", "workerTemplate")
    ]
    leader = parse_vllm_arguments(_vllm_arguments(parse(COMMAND, arguments[0][1:])))
    follower = find(seams.MAKE_ARG_PARSER)(FlexibleArgumentParser()).parse_args(arguments[1][1:])
    assert follower.headless is True
    assert (leader.node_rank, follower.node_rank) == (0, 1)
    for name in (
        *("tensor_parallel_size", "pipeline_parallel_size", "nnodes", "master_addr"),
        *("master_port", "seed", "dtype", "max_model_len"),
    ):
        assert getattr(leader, name) == getattr(follower, name), name
    assert follower.model_tag == leader.model


@pytest.mark.parametrize("name", ["prepare", "prepare-hook"])
def test_the_offline_steps_take_their_arguments(name):
    job = one(rendered(name), "Job")["spec"]["template"]
    for step in containers(job):
        if step["name"] in STEPS:
            target = [] if step["name"] == "curve" else ["-o", "/models/out"]
            parse(STEPS[step["name"]], [variables(step)["MODEL"], *target, *step["args"]])


def _source(package: str, *parts: str) -> str:
    """Their source, which names every flag: starting both commands takes long."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent.joinpath(*parts).read_text()


def test_what_the_server_refuses_the_chart_refuses_first():
    """Each of vLLM's arguments that the server cannot take, by the names in its own table."""
    source = Path(refusals.__file__).read_text()
    table = set(re.findall(r'"--([a-z-]+)"', source)) - {"api-server-count"}
    text = (CHART / "templates" / "_validate.tpl").read_text()
    (known,) = re.findall(r"\$refused := list (.+?) }}", text)
    assert table - set(re.findall(r'"([a-z-]+)"', known)) == set()


def test_what_the_server_refuses_on_a_cpu_the_chart_refuses_without_gpus():
    source = Path(refusals.__file__).read_text()
    text = (CHART / "templates" / "_validate.tpl").read_text()
    _, told = text.split('define "leanmoe.validateWithoutDevices"')
    table = re.findall(r'"(?:--)?([\w-]+) on a CPU"', source)
    assert {"Ray", "enable-expert-parallel"} < set(table)
    assert [name for name in table if f'"{name.lower()}"' not in told] == []


def test_the_charts_methods_are_those_of_the_command():
    (method,) = [one for one in parser_of(prune.COMMAND)._actions if one.dest == "method"]
    schema = json.loads((CHART / "values.schema.json").read_text())
    settings = schema["properties"]["prepare"]["properties"]["prune"]["properties"]
    assert settings["method"]["enum"] == list(method.choices)


def test_hf_and_ray_know_the_flags_of_the_scripts():
    scripts = {path.name: path.read_text() for path in (CHART / "files").iterdir()}
    ray = _source("ray", "scripts", "scripts.py")
    for flag in ("--head", "--port", "--address", "--block", "--disable-usage-stats"):
        assert f'"{flag}"' in ray
        assert flag in scripts["lead-ray.sh"] + scripts["follow-ray.sh"]
    assert "health-check" in ray
    done = subprocess.run(
        [tool("hf"), "download", "--help"], capture_output=True, text=True, check=True
    )
    assert all(flag in done.stdout for flag in ("--revision", "--local-dir", "--exclude"))
