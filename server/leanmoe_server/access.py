"""Which key opens which route. A route that is not named here wants a user's key."""

from __future__ import annotations

from enum import Enum, auto

from starlette.types import Scope

from leanmoe.wire import CONTROL_PATH, HEALTH_PATH, HISTORY_PATH, METRICS_PATH, READY_PATH


class Access(Enum):
    """Who may call a route."""

    PUBLIC = auto()
    USER = auto()
    READER = auto()  # users and administrators
    ADMIN = auto()


# Routes that anybody may call: how the server is.
PUBLIC = frozenset({HEALTH_PATH, READY_PATH, METRICS_PATH, "/ping"})
# Folders whose files anybody may read (GET and HEAD): pages that hold no data of their own.
PUBLIC_FOLDERS: tuple[str, ...] = ("/console",)
# Ours: whoever has a key reads, an administrator changes.
CONTROLLED_FOLDERS: tuple[str, ...] = (CONTROL_PATH,)
# They name administrators, and vLLM's own change the engine, load files of the server's disk, or
# reach others' requests.
ADMIN_FOLDERS: tuple[str, ...] = (
    HISTORY_PATH,
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
    "/start_profile",
    "/stop_profile",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/adapters",
    "/fault_tolerance",
    "/kv_event_sources",
    "/abort_requests",
    "/inference/v1/abort_requests",
)
_READING = ("GET", "HEAD")


def routed_path(scope: Scope) -> str:
    """The path that routes are matched against, as Starlette has it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if root and path.startswith(f"{root}/"):
        return path[len(root) :]
    return "" if root and path == root else path


def _within(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def access_of(path: str, method: str) -> Access:
    """Who may call ``method`` on ``path``; a WebSocket's method is empty."""
    if path in PUBLIC:
        return Access.PUBLIC
    if _within(path, PUBLIC_FOLDERS) and method in _READING:
        return Access.PUBLIC
    if _within(path, ADMIN_FOLDERS):
        return Access.ADMIN
    if _within(path, CONTROLLED_FOLDERS):
        return Access.READER if method in _READING else Access.ADMIN
    return Access.USER
