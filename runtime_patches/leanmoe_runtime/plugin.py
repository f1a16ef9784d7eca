"""The entry point of vLLM's ``vllm.general_plugins`` group.

Thin on purpose: vLLM only logs an import that fails, while an exception raised
inside ``register`` stops the process, which is what a broken seam must do.
"""

from __future__ import annotations

import os

from leanmoe.process.environment import PLUGIN_NAME


def register() -> None:
    """Check the seams, then replace vLLM's MoE layers by ours; safe to call again.

    Only where ``VLLM_PLUGINS`` names the plugin, as `leanmoe serve` has it: vLLM loads every
    installed plugin by itself, and a plain `vllm serve` beside us is to stay what it was.
    """
    if PLUGIN_NAME not in os.environ.get("VLLM_PLUGINS", "").split(","):
        return
    from leanmoe_runtime.lifeline import end_with_parent

    end_with_parent()
    from leanmoe_runtime.compat import (
        GateLinear,
        MoERunner,
        RoutedExperts,
        check_seams,
        op_registry_oot,
    )
    from leanmoe_runtime.experts import LeanRoutedExperts, lean_experts, register_operator
    from leanmoe_runtime.layers import LeanGateLinear, replace_factory
    from leanmoe_runtime.rpc import add_worker_methods
    from leanmoe_runtime.runner import LeanRunner
    from leanmoe_runtime.sparse.method import register_method

    check_seams()
    if op_registry_oot.get(MoERunner.__name__) is LeanRunner:
        return
    MoERunner.register_oot(LeanRunner, name=MoERunner.__name__)
    RoutedExperts.register_oot(LeanRoutedExperts, name=RoutedExperts.__name__)
    GateLinear.register_oot(LeanGateLinear, name=GateLinear.__name__)
    replace_factory(lean_experts)
    register_operator()
    add_worker_methods()
    register_method()
