"""Where a server's keys come from: a watched file, the environment, vLLM's own ``--api-key``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from leanmoe.errors import InputError
from leanmoe.files.text import user_text
from leanmoe_server.keys.keys import ADMINISTRATOR, UNNAMED, Key, check_apart, digest_of, parse_keys

ADMIN_KEY_VARIABLE = "LEANMOE_ADMIN_KEY"
KEYS_VARIABLE = "LEANMOE_KEYS"
VLLM_KEY_VARIABLE = "VLLM_API_KEY"
SECRET_VARIABLES = (ADMIN_KEY_VARIABLE, KEYS_VARIABLE, VLLM_KEY_VARIABLE)
_MAX_FILE_BYTES = 4 << 20


@dataclass(frozen=True)
class KeySource:
    """Digests that hold for the whole run, and the file or text of the rest. No key itself."""

    fixed: tuple[Key, ...] = ()
    file: Path | None = None
    text: str | None = field(default=None, repr=False)

    @property
    def admits_everyone(self) -> bool:
        """True where nobody gave a user key: a key file demands one even while it is empty."""
        has_users = any(not key.admin for key in self.fixed)
        return self.file is None and self.text is None and not has_users

    def read(self) -> tuple[Key, ...]:
        """All keys as they are now; ``InputError`` where file or text are broken."""
        where = KEYS_VARIABLE if self.file is None else str(self.file)
        text = _text_of(self.file) if self.file is not None else self.text
        keys = (*self.fixed, *(() if text is None else parse_keys(text, where)))
        check_apart(keys, where if text is not None else "the keys")
        return keys

    def with_users(self, keys: Iterable[str]) -> KeySource:
        """These and vLLM's own keys, which are one tenant without a name."""
        digests = tuple(dict.fromkeys(digest_of(key) for key in keys))
        if not digests:
            return self
        joined = replace(self, fixed=(*self.fixed, Key(UNNAMED, digests)))
        if set(digests) & {one for key in self.fixed for one in key.digests}:
            raise InputError(
                "the admin key is also a user's --api-key; give the administrator another"
            )
        joined.read()
        return joined


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as content:
            data = content.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise InputError(f"--keys {file} is longer than {_MAX_FILE_BYTES} bytes")
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--keys {file} cannot be read: {error}") from None


def key_source(
    keys_file: str | None, admin_key_file: str | None, environment: Mapping[str, str]
) -> KeySource:
    """What the command line and the environment name; ``InputError`` where it cannot be used."""
    admin = read_admin_key(admin_key_file, environment)
    text = environment.get(KEYS_VARIABLE)
    if keys_file is not None and text is not None:
        raise InputError(f"both --keys {keys_file} and {KEYS_VARIABLE} were given; keep one")
    fixed = () if admin is None else (Key(ADMINISTRATOR, (digest_of(admin),), admin=True),)
    source = KeySource(fixed, None if keys_file is None else Path(keys_file), text)
    source.read()
    return source


def read_admin_key(file: str | None, environment: Mapping[str, str]) -> str | None:
    """The admin key of ``file`` or else of the environment, ``None`` where neither is given."""
    if file is None:
        given = environment.get(ADMIN_KEY_VARIABLE)
        if given is not None and not given.strip():
            raise InputError(f"{ADMIN_KEY_VARIABLE} is set and empty; put the key in or unset it")
        return given.strip() if given else None
    try:
        key = user_text(Path(file)).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--admin-key-file {file} cannot be read: {error}") from None
    if not key:
        raise InputError(f"--admin-key-file {file} is empty; write the key into it")
    return key
