"""What ``leanmoe serve`` refuses: our arguments before vLLM is imported, then vLLM's own."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from leanmoe.checkpoint import open_checkpoint
from leanmoe.errors import CheckpointError, InputError
from leanmoe.messages import UnionBudget
from leanmoe_server.command import COMMAND
from leanmoe_server.keys.key_source import key_source
from leanmoe_server.keys.keys import digest_of
from leanmoe_server.model import SkipModel
from leanmoe_server.policy import Policy
from leanmoe_server.preflight import check_and_configure
from leanmoe_server.settings import ServeSettings
from leanmoe_server.table_folder import read_sources
from tests.integration.live_server import free_port
from tests.tiny import write_tiny_curve, write_tiny_mixtral


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preflight") / "tiny"
    return write_tiny_curve(write_tiny_mixtral(path, hidden=32, ffn=32))


@pytest.fixture
def copied_model(small_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_model, tmp_path / "copy"))


def configure(model: Path, *arguments: str) -> ServeSettings:
    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    given = [str(model), "--host", "127.0.0.1", "--port", str(free_port()), *arguments]
    args, args.rest = parser.parse_known_args(given)
    return check_and_configure(args)


def test_a_good_start(small_model: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    settings = configure(small_model, "--max-kld", "0.05", "--admin-key-file", str(key))
    assert settings.model.resolve(settings.policy).level == 0.5
    assert [key.digests for key in settings.keys.fixed] == [(digest_of("s3cret"),)]
    assert configure(small_model).model.resolve(configure(small_model).policy).level == 0.0


def test_packed_shards_that_the_config_is_silent_about_stop_before_vllm(copied_model: Path) -> None:
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight_values"
    save_file({name: np.zeros((4, 16), np.float32)}, copied_model / "model-2.safetensors")
    (copied_model / "model-3.safetensors").write_bytes(b"no such file")
    with pytest.raises(CheckpointError, match=r"w1.weight_values in .* is packed and its config"):
        configure(copied_model)


def test_blocks_that_are_none_are_told_with_their_folder(copied_model: Path) -> None:
    inner = {"quant_method": "fp8", "weight_block_size": [128]}
    packed = {"quant_method": "leanmoe_sparse", "keep": 16, "dtype": "float8_e4m3fn"}
    config = json.loads((copied_model / "config.json").read_text())
    config["quantization_config"] = {**packed, "inner": inner}
    (copied_model / "config.json").write_text(json.dumps(config))
    said = rf"{re.escape(str(copied_model))}/config\.json has the weight_block_size \[128\]"
    with pytest.raises(CheckpointError, match=said):
        configure(copied_model)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--skip-level", "1.5"], "outside [0, 1]"),
        (["--skip-level", "-0.5"], "outside [0, 1]"),
        (["--skip-level", "nan"], "outside [0, 1]"),
        (["--max-kld", "-1"], "max_kld is -1.0"),
        (["--max-kld", "nan"], "max_kld is nan"),
        (["--max-kld", "inf"], "max_kld is inf"),
        (["--port", "70000"], "--port is 70000"),
        (["--port", "0"], "--port is 0"),
        (["--host", "203.0.113.7"], "cannot listen on 203.0.113.7"),
        (["--drain-seconds", "-1"], "--drain-seconds is -1.0"),
        (["--drain-seconds", "inf"], "--drain-seconds is inf"),
        (["--poll-seconds", "0"], "--poll-seconds is 0.0"),
        (["--admin-key-file", "/nowhere/key"], "cannot be read"),
        (["--tuned-table", "/nowhere/E=8,N=32,device_name=X.json"], "cannot be read"),
        (["--admin-key-file", os.devnull], "is empty"),
        (["--union-budget", "0"], "union_budget is 0"),
        (["--union-mode", "redirect"], "give both"),
        (["--union-budget", "4", "--max-kld", "0.1"], "turn the budget off"),
    ],
)
def test_bad_arguments(small_model: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError) as refused:
        configure(small_model, *arguments)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_levels_between_need_a_curve(copied_model: Path) -> None:
    (copied_model / "leanmoe.json").unlink()
    for arguments in (["--skip-level", "0.5"], ["--max-kld", "0.1"]):
        with pytest.raises(InputError, match="leanmoe curve"):
            configure(copied_model, *arguments)
    assert configure(copied_model, "--skip-level", "1").policy.target.level == 1.0


def test_a_changed_file_unless_told_not_to_look(copied_model: Path) -> None:
    weights = copied_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match="does not match the manifest"):
        configure(copied_model)
    configure(copied_model, "--skip-verify")
    weights.unlink()
    with pytest.raises(InputError, match="is missing"):
        configure(copied_model)


def test_an_edited_promise_even_when_told_not_to_look(copied_model: Path) -> None:
    manifest = copied_model / "leanmoe.json"
    content = json.loads(manifest.read_text())
    content["curve"]["points"][1]["kld_upper"] = 0.0
    manifest.write_text(json.dumps(content))
    with pytest.raises(InputError, match="does not match its own digest"):
        configure(copied_model, "--skip-verify")


def test_a_model_in_the_wrong_place_of_the_command_line(small_model: Path) -> None:
    with pytest.raises(InputError, match=f"put {small_model} first"):
        configure(Path("512"), str(small_model))


def test_no_model_and_a_dense_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        configure(tmp_path / "absent")
    with pytest.raises(InputError, match=r"has no config\.json"):
        configure(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(InputError, match="is a dense model"):
        configure(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--enable-return-routed-experts"], "cannot take --enable-return-routed-experts"),
        (["--data-parallel-rank", "0"], "cannot take --data-parallel-rank"),
        (["--data-parallel-start-rank", "1"], "cannot take --data-parallel-start-rank"),
        (["--data_parallel_external_lb"], "cannot take --data-parallel-external-lb"),
        (["--data-parallel-hybrid-lb"], "cannot take --data-parallel-hybrid-lb"),
        (
            ["--data-parallel-size", "2", "--data-parallel-size-local", "1"],
            "cannot take --data-parallel-size-local below --data-parallel-size",
        ),
        (["--enable-elastic-ep"], "cannot take --enable-elastic-ep"),
        (["--distributed-executor-backend", "ray"], "cannot take Ray on a CPU"),
        (["--data-parallel-backend", "ray"], "cannot take Ray on a CPU"),
        (["--api-server-count", "0"], "cannot take --api-server-count 0"),
        (["--headless"], "cannot take --headless"),
        (["--enable-expert-parallel"], "cannot take --enable-expert-parallel on a CPU"),
        (["--enable-lora"], "cannot take --enable-lora on a CPU"),
        (
            ["--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}'],
            "cannot take --speculative-config with multi-token prediction",
        ),
        (["--kv-offloading-size", "1"], "cannot take --kv-offloading-size"),
        (
            ["--kv-transfer-config", '{"kv_connector": "x", "kv_role": "kv_both"}'],
            "cannot take --kv-transfer-config",
        ),
        (["--hf-overrides", '{"num_local_experts": 2}'], "cannot take --hf-overrides"),
        (["--hf-config-path", "elsewhere"], "cannot take --hf-config-path"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--max-model-len", "many"], "--max-model-len"),
        (["--enable-auto-tool-choice"], "requires --tool-call-parser"),
    ],
)
def test_what_vllm_offers_and_we_cannot_take(arguments: list[str], words: str) -> None:
    # Imported late: the other tests show that none of vLLM is needed for them.
    from leanmoe_server.vllm_engine import parse_vllm_arguments

    with pytest.raises(InputError) as refused:
        parse_vllm_arguments(["--model", "m", *arguments])
    assert words in str(refused.value)


def test_our_parts_are_added_to_what_the_user_gave() -> None:
    from leanmoe import __version__
    from leanmoe_server.vllm_engine import parse_vllm_arguments, with_our_parts

    config = '{"mine": 1}'
    middleware = "somewhere.Middleware"
    given = ["--model", "m", "--additional-config", config, "--middleware", middleware]
    settings = ServeSettings(SkipModel((0,), None), drain_seconds=7)
    args = with_our_parts(parse_vllm_arguments([*given, "--api-key", "k"]), settings)
    assert args.additional_config == {"mine": 1, "leanmoe": {"plugin": __version__}}
    outer = ("admission.Admission", "door.Door", "marking.Marking")
    ours = [f"leanmoe_server.{one}" for one in outer]
    assert args.middleware == [middleware, *ours]
    assert args.shutdown_timeout == 7
    assert args.api_key is None and not args.leanmoe.keys.admits_everyone
    assert args.leanmoe.every_worker_holds_all_layers


@pytest.mark.parametrize(
    ("on_cpu", "experts", "told", "least", "refused"),
    [
        (True, 4, {}, 0, None),
        (False, 4, {"union_budget": 4}, 4, None),
        (False, None, {}, 0, "start the server with --union-budget N"),
    ],
)
def test_a_gpu_s_graphs_are_made_for_the_budget_of_the_start(
    monkeypatch, on_cpu, experts, told, least, refused
) -> None:
    from leanmoe import __version__
    from leanmoe_server import vllm_engine

    monkeypatch.setattr(vllm_engine, "is_cpu_build", lambda: on_cpu)
    policy = Policy(union=None if experts is None else UnionBudget(experts=experts))
    settings = ServeSettings(SkipModel((0,), None), policy)
    args = vllm_engine.with_our_parts(vllm_engine.parse_vllm_arguments(["--model", "m"]), settings)
    assert args.additional_config == {"leanmoe": {"plugin": __version__, **told}}
    assert args.leanmoe.least_union == least
    if refused is None:
        assert args.leanmoe.union_unavailable is None
    else:
        with pytest.raises(InputError, match=refused):
            args.leanmoe.resolve(Policy(union=UnionBudget(experts=4)))


def test_a_second_model_is_refused(small_model: Path) -> None:
    from leanmoe_server.vllm_engine import serve

    settings = ServeSettings(SkipModel((0,), None))
    tables = read_sources(open_checkpoint(small_model), [])
    with pytest.raises(InputError, match="two models, m and elsewhere"):
        serve("m", ["--model", "m", "--model", "elsewhere"], settings, tables)


def test_one_key_for_users_and_administrator() -> None:
    from leanmoe_server.vllm_engine import parse_vllm_arguments, with_our_parts

    keys = key_source(None, None, {"LEANMOE_ADMIN_KEY": "same"})
    settings = ServeSettings(SkipModel((0,), None), keys=keys)
    with pytest.raises(InputError, match="is also a user's --api-key"):
        with_our_parts(parse_vllm_arguments(["--model", "m", "--api-key", "same"]), settings)


BUDGET = ("--governor-union-budget", "4", "--memory-bandwidth", "30")
ACT = ("--governor", "act", "--slo-ttft", "500")


def test_the_governor_s_aims(small_model: Path) -> None:
    assert configure(small_model).governor is None
    aims = configure(small_model, *ACT, "--slo-itl", "50", "--governor-max-kld", "0.05").governor
    assert aims is not None and (aims.mode, aims.top) == ("act", 0.5)
    assert (aims.objectives.ttft_seconds, aims.objectives.itl_seconds) == (0.5, 0.05)
    aims = configure(small_model, *ACT, "--governor-max-level", "1", *BUDGET).governor
    assert aims is not None and (aims.least_budget, aims.bandwidth) == (4, 30e9)
    assert 0.1 < aims.expert_share < 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--slo-ttft", "500"], "--slo-ttft is for the governor, which is off"),
        (["--governor-max-level", "1"], "--governor-max-level is for the governor"),
        (["--governor", "act", "--governor-max-level", "1"], "needs an objective"),
        ([*ACT], "needs a floor of quality"),
        ([*ACT, "--governor-max-level", "2"], "--governor-max-level is 2.0, outside [0, 1]"),
        ([*ACT, "--governor-max-level", "nan"], "outside [0, 1]"),
        ([*ACT, "--governor-max-level", "0.5", "--skip-level", "0.5"], "could do nothing"),
        ([*ACT, "--governor-max-level", "1", "--max-skip-level", "0.5"], "--max-skip-level"),
        ([*ACT, "--governor-max-level", "1", "--slo-itl", "0"], "--slo-itl is 0.0"),
        ([*ACT, "--governor-max-level", "1", "--governor-dwell", "nan"], "--governor-dwell is nan"),
        ([*ACT, "--governor-max-level", "1", "--memory-bandwidth", "9"], "go together"),
        ([*ACT, "--governor-max-kld", "0.05", *BUDGET], "no curve measured"),
        ([*ACT, "--governor-max-level", "1", *BUDGET, "--deterministic"], "--deterministic"),
    ],
)
def test_a_governor_that_cannot_be(small_model: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        configure(small_model, *arguments)
    assert words in str(error.value), str(error.value)


def test_a_trail_that_cannot_be_written_stops_the_start(small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--audit-file"):
        configure(small_model, "--audit-file", str(tmp_path / "absent" / "audit"))
    configure(small_model, "--audit-file", str(tmp_path / "audit"))
    assert (tmp_path / "audit").read_text() == ""


def test_the_terms_of_shadow_replays(small_model: Path) -> None:
    assert configure(small_model).shadow is None
    terms = configure(small_model, "--shadow-share", "0.1", "--max-kld", "0.05").shadow
    assert terms is not None and (terms.share, terms.max_kld) == (0.1, 0.05)
    own = configure(small_model, "--shadow-share", "1", "--shadow-max-kld", "0.2").shadow
    assert own is not None and own.max_kld == 0.2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shadow-share", "1.5"], "--shadow-share is 1.5"),
        (["--shadow-share", "nan"], "--shadow-share is nan"),
        (["--shadow-max-kld", "0.1"], "add --shadow-share"),
        (["--shadow-share", "1", "--shadow-max-kld", "nan"], "--shadow-max-kld is nan"),
        (["--shadow-share", "1", "--shadow-tokens-per-minute", "0"], "is 0, expected 1 or more"),
    ],
)
def test_shadow_replays_that_cannot_be(small_model: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        configure(small_model, *arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "variable",
    [
        "VLLM_ENABLE_RESPONSES_API_STORE",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "VLLM_USE_RUST_FRONTEND",
    ],
)
def test_what_only_one_api_process_would_know_is_refused_for_several(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leanmoe_server.vllm_engine import parse_vllm_arguments

    several = ["--model", "m", "--api-server-count", "2"]
    monkeypatch.setenv(variable, "0")
    assert parse_vllm_arguments(several).api_server_count == 2
    monkeypatch.setenv(variable, "1")
    with pytest.raises(InputError, match=f"--api-server-count 2 with {variable}: .*process"):
        parse_vllm_arguments(several)
    assert parse_vllm_arguments(["--model", "m"]).api_server_count is None
