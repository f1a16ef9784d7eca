"""The keys in force and who presents one; a changed key file is read while the server runs."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from leanmoe.errors import InputError
from leanmoe.wire import ADMIN_HEADER
from leanmoe_server.keys.key_source import KeySource
from leanmoe_server.keys.keys import Key, digest_of

logger = logging.getLogger(__name__)
WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Presented:
    """What a request's headers prove: a user, an administrator, both or neither."""

    user: Key | None
    admin: Key | None
    anything: bool


class Keyring:
    """Finds a key in a time that tells nothing of the others.

    ``accept`` sees all keys before they come into force, and refuses them by ``InputError``;
    ``broken`` is called for every change of the file that could not be used.
    """

    def __init__(
        self,
        source: KeySource,
        accept: Callable[[tuple[Key, ...]], None],
        broken: Callable[[], None],
    ) -> None:
        self._source = source
        self._accept = accept
        self._broken = broken
        # Places in the table depend on a secret of this process, so that nobody can choose theirs.
        self._secret = secrets.token_bytes(32)
        self._watch: asyncio.Task[None] | None = None
        self._seen = self._stamp()
        self._put_in_force(source.read())

    @property
    def admits_everyone(self) -> bool:
        return self._source.admits_everyone

    @property
    def has_admins(self) -> bool:
        return any(key.admin for key in self.keys)

    def _put_in_force(self, keys: tuple[Key, ...]) -> None:
        self._accept(keys)
        self.keys = keys
        self._by_place = {self._place(one): (one, key) for key in keys for one in key.digests}

    def _place(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")

    def find(self, sent: str) -> Key | None:
        """Whose key ``sent`` is; header bytes arrive as latin-1."""
        digest = digest_of(sent.encode("latin-1", errors="replace"))
        expected, key = self._by_place.get(self._place(digest), (b"", None))
        return key if hmac.compare_digest(digest, expected) else None

    def presented(self, headers: Mapping[str, str]) -> Presented:
        """Who asks: by ``Authorization: Bearer``, ``X-API-Key`` or ``X-LeanMoE-Admin-Key``."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else ""
        sent = [one for one in (bearer, headers.get("x-api-key", "")) if one]
        admin_sent = headers.get(ADMIN_HEADER, "")
        found = [key for key in map(self.find, sent) if key is not None]
        as_admin = self.find(admin_sent) if admin_sent else None
        admins = [key for key in (*found, as_admin) if key is not None and key.admin]
        users = [key for key in found if not key.admin]
        anything = bool(sent or admin_sent)
        return Presented(next(iter(users), None), next(iter(admins), None), anything)

    def watch(self) -> None:
        """Look at the file once a second until the event loop ends."""
        if self._source.file is not None and self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._forever())

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            # A file on a network share may take its time; answers do not wait for it.
            stamp = await asyncio.to_thread(self._stamp)
            if stamp != self._seen:
                self.reload()

    def _stamp(self) -> object:
        try:
            stat = None if self._source.file is None else self._source.file.stat()
        except OSError as error:
            return str(error)
        return stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def reload(self) -> bool:
        """Read the file again; a broken one leaves the old keys in force, and is told once."""
        self._seen = self._stamp()
        try:
            self._put_in_force(self._source.read())
        except InputError as error:
            self._broken()
            logger.error("the keys stay as they were: %s", error)
            return False
        logger.info("%d keys in force, read again from %s", len(self.keys), self._source.file)
        return True
