"""The entry point of vLLM's ``vllm.general_plugins`` group.

Thin on purpose: vLLM only logs an import that fails, while an exception raised
inside ``register`` stops the process, which is what a broken seam must do.
"""

from __future__ import annotations


def register() -> None:
    """Check the seams, then replace vLLM's MoE layers by ours; safe to call again."""
    from leanmoe_runtime.compat import MoERunner, RoutedExperts, check_seams, op_registry_oot
    from leanmoe_runtime.experts import LeanRoutedExperts, register_operator
    from leanmoe_runtime.rpc import add_worker_methods
    from leanmoe_runtime.runner import LeanRunner

    check_seams()
    if op_registry_oot.get(MoERunner.__name__) is LeanRunner:
        return
    MoERunner.register_oot(LeanRunner, name=MoERunner.__name__)
    RoutedExperts.register_oot(LeanRoutedExperts, name=RoutedExperts.__name__)
    register_operator()
    add_worker_methods()
