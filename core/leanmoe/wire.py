"""What the server and its clients both name: routes, headers and the keys of our additions."""

from __future__ import annotations

CONTROL_PATH = "/v1/expert_skipping"
HISTORY_PATH = f"{CONTROL_PATH}/history"
ROLLBACK_PATH = f"{CONTROL_PATH}/rollback"
STATUS_PATH = f"{CONTROL_PATH}/status"
CONSOLE_PATH = "/console"
READY_PATH = "/ready"
HEALTH_PATH = "/health"
METRICS_PATH = "/metrics"

# In a request's body: its own level. In an answer's ``usage``: the level that applied.
REQUEST_KEY = "expert_skipping"
LEVEL_HEADER = "x-leanmoe-skip-level"
BUDGET_HEADER = "x-leanmoe-union-budget"
ADMIN_HEADER = "x-leanmoe-admin-key"
