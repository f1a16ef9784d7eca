"""The engine's environment: plugin or stock, preloads kept, the user's choices respected."""

import pytest

from leanmoe.process.environment import engine_environment


def test_stock_names_no_plugin_of_ours_whatever_the_user_set():
    assert engine_environment(plugin=False, base={"VLLM_PLUGINS": "leanmoe"})[
        "VLLM_PLUGINS"
    ] not in ("", "leanmoe")
    assert engine_environment(plugin=True, base={})["VLLM_PLUGINS"] == "leanmoe"
    both = engine_environment(base={"VLLM_PLUGINS": "theirs"})
    assert both["VLLM_PLUGINS"] == "theirs,leanmoe"
    assert engine_environment(base=both)["VLLM_PLUGINS"] == "theirs,leanmoe"


def test_the_user_s_settings_win():
    base = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "1", "DO_NOT_TRACK": "0"}
    environment = engine_environment(base=base)
    assert environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "1"
    assert environment["DO_NOT_TRACK"] == "0"


@pytest.mark.vllm
def test_preloads_are_added_once():
    first = engine_environment(base={"LD_PRELOAD": "/opt/mine.so"})
    second = engine_environment(base=first)
    assert first["LD_PRELOAD"].startswith("/opt/mine.so")
    assert "libiomp5.so" in first["LD_PRELOAD"]
    assert second == first


def test_nothing_is_reported_to_the_network():
    environment = engine_environment(base={})
    assert environment["VLLM_NO_USAGE_STATS"] == "1" and environment["DO_NOT_TRACK"] == "1"
