"""What can be known wrong before vLLM is imported: model, manifest, level, keys, port."""

from __future__ import annotations

import os
import socket
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from leanmoe.checkpoint import Checkpoint, open_checkpoint
from leanmoe.errors import CheckpointError, InputError, LeanMoEError
from leanmoe.manifest import check_files
from leanmoe.policy import check_level
from leanmoe.skip_rule import SkipRule
from leanmoe.sparse.scale_blocks import Blocks
from leanmoe.sparse.sparse_format import lost_settings
from leanmoe.sparse.stored_parts import packed_tensor
from leanmoe_server.audit.journal import Journal
from leanmoe_server.cache_space import full_cache
from leanmoe_server.governor.aims import aims_of
from leanmoe_server.keys.key_source import key_source
from leanmoe_server.model import SkipModel
from leanmoe_server.policy import Policy
from leanmoe_server.schema import change_of
from leanmoe_server.settings import KEEP_ALIVE_SECONDS, ServeSettings
from leanmoe_server.shadow.terms import terms_of
from leanmoe_server.table_folder import read_sources
from leanmoe_server.tenants.tenants import cap_of

_DEV_MODE = "VLLM_SERVER_DEV_MODE"
_KEEP_ALIVE_VARIABLE = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"


def _open_model(model: str, rest: Sequence[str]) -> Checkpoint:
    try:
        return open_checkpoint(Path(model))
    except CheckpointError as error:
        stray = [one for one in rest if Path(one, "config.json").is_file()]
        if stray:
            raise InputError(
                f"MODEL was read as {model!r}; put {stray[0]} first, then vLLM's arguments"
            ) from None
        raise error


def _check_packing(checkpoint: Checkpoint) -> None:
    """Raise where shards are packed and config.json does not say how: vLLM knows no such names."""
    how = checkpoint.packing
    if how is not None:
        Blocks.of(how.inner, str(checkpoint.path / "config.json"))
    elif (found := packed_tensor(checkpoint.path)) is not None:
        raise lost_settings(f"tensor {found}", checkpoint.path)


def refuse_open_doors(environment: Mapping[str, str]) -> None:
    """Raise where vLLM would open routes that reach past the policy."""
    if environment.get(_DEV_MODE, "0").strip() not in ("", "0"):
        raise InputError(
            f"{_DEV_MODE} is set: its routes change the workers without a key and behind the "
            "level that the server states; unset it"
        )


def check_port(host: str | None, port: int) -> None:
    """Raise unless ``host:port`` can be bound now."""
    if not 1 <= port <= 65535:
        raise InputError(f"--port is {port}, expected a number from 1 to 65535")
    family = socket.AF_INET6 if host and ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host or "", port))
            probe.listen(1)
        except OSError as error:
            raise InputError(
                f"cannot listen on {host or '0.0.0.0'}:{port}: {error.strerror or error}; "
                "stop what uses it or choose another --port"
            ) from None


def _check_seconds(name: str, value: float, least: float) -> float:
    if not least <= value < float("inf"):
        raise InputError(f"{name} is {value}, expected a number of seconds from {least} up")
    return value


def _check_count(name: str, value: int, least: int, most: int | None = None) -> int:
    if value < least or (most is not None and value > most):
        up = "up" if most is None else f"to {most}"
        raise InputError(f"{name} is {value}, expected a whole number from {least} {up}")
    return value


def _keep_alive(given: float | None, environment: Mapping[str, str]) -> float:
    """What is asked for, else what vLLM is told, else the default."""
    if given is not None:
        return _check_seconds("--keep-alive-seconds", given, 1.0)
    told = environment.get(_KEEP_ALIVE_VARIABLE)
    if told is None:
        return KEEP_ALIVE_SECONDS
    try:
        return _check_seconds(_KEEP_ALIVE_VARIABLE, float(told), 1.0)
    except ValueError:
        raise InputError(f"{_KEEP_ALIVE_VARIABLE} is {told!r}, expected seconds") from None


def _policy(args: Namespace) -> Policy:
    """The first policy, as a change of the exact one."""
    if args.skip_level is not None:
        check_level(args.skip_level)
    flags = {
        "level": args.skip_level,
        "max_kld": args.max_kld,
        "phases": args.phases,
        "union_budget": args.union_budget,
        "union_mode": args.union_mode,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    return change_of(given).applied_to(Policy())


def _rule(args: Namespace) -> SkipRule | None:
    return None if args.skip_rule is None else SkipRule(args.skip_rule)


def check_and_configure(args: Namespace) -> ServeSettings:
    """Everything the server needs, or one clear error."""
    refuse_open_doors(os.environ)
    checkpoint = _open_model(args.model, args.rest)
    _check_packing(checkpoint)
    settings = _settings(args, SkipModel.of(checkpoint, args.max_skip_level, _rule(args)))
    _check_surroundings(args, settings)
    read_sources(checkpoint, args.tuned_table)  # before the hashing, which takes minutes
    if checkpoint.manifest is not None and not args.skip_verify:
        check_files(checkpoint.path, checkpoint.manifest)
    return settings


def _settings(args: Namespace, model: SkipModel) -> ServeSettings:
    """What the arguments ask for of ``model``, its first policy resolved to see that it can be."""
    settings = ServeSettings(
        model=model,
        policy=_policy(args),
        union_unavailable="the server was started with --deterministic"
        if args.deterministic
        else None,
        keys=key_source(args.keys, args.admin_key_file, os.environ),
        share_prefix_cache=args.share_prefix_cache,
        poll_seconds=_check_seconds("--poll-seconds", args.poll_seconds, 0.1),
        drain_seconds=_check_seconds("--drain-seconds", args.drain_seconds, 1.0),
        client_seconds=_check_seconds("--client-seconds", args.client_seconds, 1.0),
        keep_alive_seconds=_keep_alive(args.keep_alive_seconds, os.environ),
        max_waiting=_check_count("--max-waiting", args.max_waiting, 0),
        max_body_bytes=_check_count("--max-body-mib", args.max_body_mib, 1, 64) << 20,
        audit_file=args.audit_file,
    )
    settings.resolve(settings.policy)
    return replace(
        settings,
        governor=aims_of(args, model, settings.policy),
        shadow=terms_of(args, settings.policy),
    )


def _check_surroundings(args: Namespace, settings: ServeSettings) -> None:
    """Raise where the audit file, the keys, the port or the cache folder would fail later."""
    if settings.audit_file is not None:
        Journal(settings.audit_file).close()
    for key in settings.keys.read():
        cap_of(key, settings.model)
    if not any(one.startswith("--uds") for one in args.rest):
        check_port(args.host, args.port)
    if (full := full_cache(os.environ)) is not None:
        raise LeanMoEError(full)
