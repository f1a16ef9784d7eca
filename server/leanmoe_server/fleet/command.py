"""``leanmoe fleet``: one level for several servers."""

from __future__ import annotations

from leanmoe.dispatch import Group

COMMAND = Group(
    name="fleet",
    table={
        "set": ("leanmoe_server.fleet.fleet_set", "bring one level to every server"),
        "show": ("leanmoe_server.fleet.fleet_show", "which server has which level and model"),
        "watch": ("leanmoe_server.fleet.fleet_watch", "say what changes, and keep a level"),
    },
    help="One level for all replicas of a release, which share nothing but that.",
    example="leanmoe fleet set --dns lean-leanmoe-fleet.models.svc --max-kld 0.05",
)
