"""Every Prometheus name LeanMoE exports, in one place (documented in docs/metrics.md).

None begins with ``vllm:``: vLLM unregisters collectors that do.
"""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    name: str
    help: str
    labels: tuple[str, ...] = ()


ROUTED_ASSIGNMENTS = Metric(
    "leanmoe_routed_assignments_total",
    "Token-expert assignments the router made, before skipping",
    ("layer",),
)
SKIPPED_ASSIGNMENTS = Metric(
    "leanmoe_skipped_assignments_total",
    "Token-expert assignments that were routed and not computed",
    ("layer",),
)
SUBSTITUTED_ASSIGNMENTS = Metric(
    "leanmoe_substituted_assignments_total",
    "Token-expert assignments computed by another expert, under a union budget",
    ("layer",),
)
SKIPPED_WEIGHT = Metric(
    "leanmoe_skipped_router_weight_total",
    "Router weight of skipped assignments; the whole weight of one token is 1",
    ("layer",),
)
LAYER_STEPS = Metric("leanmoe_layer_steps_total", "Engine steps a layer ran in", ("layer",))
DISTINCT_EXPERTS = Metric(
    "leanmoe_distinct_experts_total",
    "Experts whose weights a step read, summed over steps",
    ("layer",),
)
NONFINITE_TOKENS = Metric(
    "leanmoe_nonfinite_router_tokens_total",
    "Tokens whose router weights were no numbers; they kept all their experts",
    ("layer",),
)
UNION_BUDGET = Metric(
    "leanmoe_union_budget", "Most distinct experts per step and layer; 0 where there is no budget"
)
SKIP_LEVEL = Metric("leanmoe_skip_level", "Skip level in force, 0 exact to 1 top-1 only")
SKIP_RULE = Metric(
    "leanmoe_skip_rule", "1 for the skip rule of the level in force, 0 for the others", ("rule",)
)
POLICY_VERSION = Metric("leanmoe_policy_version", "Number of level changes since the start")
TOKENS_PER_SECOND = Metric(
    "leanmoe_tokens_per_second",
    "Tokens per second since the last reading",
    ("phase",),
)
WEIGHT_BYTES = Metric("leanmoe_weight_bytes", "Bytes of model weights a worker holds", ("worker",))
RESIDENT_BYTES = Metric(
    "leanmoe_resident_memory_bytes", "Resident memory of a process", ("process",)
)
DEVICE_BYTES = Metric(
    "leanmoe_device_memory_bytes", "Device memory in use, where there is a device", ("worker",)
)
HANDSHAKE_COMPLETE = Metric(
    "leanmoe_handshake_complete", "1 when every worker reported every MoE layer wrapped"
)
HANDSHAKE_LAYERS = Metric(
    "leanmoe_wrapped_layers", "MoE layers wrapped, by worker and skip mode", ("worker", "mode")
)
SNAPSHOT_AGE = Metric("leanmoe_snapshot_age_seconds", "Seconds since the counters were last read")
POLICY_CHANGES = Metric(
    "leanmoe_policy_changes_total",
    "Changes of the policy by who made them, and whether they reached every worker",
    ("cause", "outcome"),
)
AUDIT_FAILURES = Metric(
    "leanmoe_audit_write_failures_total", "Changes that could not be written to the audit file"
)
GOVERNOR_ARMED = Metric(
    "leanmoe_governor_armed", "1 while the governor observes or acts; 0 off, held or disarmed"
)
GOVERNOR_LEVEL = Metric("leanmoe_governor_level", "Skip level of requests that name none")
GOVERNOR_RUNG = Metric(
    "leanmoe_governor_rung", "Rungs the governor stands above the operator's policy"
)
GOVERNOR_PRESSURE = Metric(
    "leanmoe_governor_pressure", "Load against the governor's objectives, smoothed; 1 is at them"
)
GOVERNOR_MOVES = Metric(
    "leanmoe_governor_moves_total", "Moves of the governor by direction", ("direction",)
)

TENANT_REQUESTS = Metric(
    "leanmoe_tenant_requests_total", "Requests that a tenant's key let in", ("tenant",)
)
TENANT_TOKENS = Metric(
    "leanmoe_tenant_tokens_total",
    "Tokens of a tenant's prompts and answers",
    ("tenant", "kind"),
)
TENANT_REFUSED = Metric(
    "leanmoe_tenant_refused_total",
    "Requests refused for a key's limits, or for want of a known key",
    ("tenant", "reason"),
)
TENANT_RUNNING = Metric(
    "leanmoe_tenant_requests_running", "Requests of a tenant that run now", ("tenant",)
)
REFUSED_REQUESTS = Metric(
    "leanmoe_refused_requests_total",
    "Requests refused before the model saw them, for want of room, time or readiness",
    ("reason",),
)
KEY_FILE_ERRORS = Metric(
    "leanmoe_key_file_errors_total", "Changes of the key file that could not be used"
)
SHADOW_REPLAYS = Metric(
    "leanmoe_shadow_replays_total", "Finished answers that were scored again", ("outcome",)
)
SHADOW_TOKENS = Metric(
    "leanmoe_shadow_tokens_total", "Tokens computed to score finished answers again"
)
SHADOW_KLD = Metric(
    "leanmoe_shadow_kld", "Mean KLD of served from exact answers, nats per token", ("pair",)
)
SHADOW_TOP1 = Metric(
    "leanmoe_shadow_top1_agreement",
    "Share of tokens at which served and exact agree on the most likely one",
    ("pair",),
)
SHADOW_LOWER = Metric(
    "leanmoe_shadow_kld_lower_bound", "Lower confidence bound of the KLD above its noise"
)
SHADOW_BREACH = Metric(
    "leanmoe_shadow_breach", "1 from when quality was found too low until an operator decides"
)

ALL: tuple[Metric, ...] = tuple(v for v in list(globals().values()) if isinstance(v, Metric))
