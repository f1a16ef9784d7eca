"""``leanmoe key``: keys for users and administrators of a server."""

from __future__ import annotations

from leanmoe.dispatch import Group

COMMAND = Group(
    name="key",
    table={"new": ("leanmoe_server.keys.key_new", "make a key and the entry that admits it")},
    help="Keys of `leanmoe serve --keys FILE`.",
    example="leanmoe key new alice --file keys.toml",
)
