"""`manta key`: API keys in a file that gateways read. A key is shown once, when it is made; the file holds its hash."""

import argparse
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from cluster.auth.api_keys import ApiKey, KeyFile, make_key, read_key_file, write_key_file
from cluster.auth.credential import ANY_MODEL, is_tenant
from cluster.client import KEY_VARIABLE
from engine.errors import ConfigError

DEFAULT_FILE = "manta_keys.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", type=Path, default=Path(DEFAULT_FILE), help="the keys (default: %(default)s)")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    create = verbs.add_parser("create", help="make a key and show it, this once")
    add_grant_arguments(create)
    create.add_argument("--days", type=float, metavar="D", help="valid for so long (default: until it is revoked)")
    verbs.add_parser("list", help="show the keys without what is secret")
    revoke = verbs.add_parser("revoke", help="refuse a key from now on")
    revoke.add_argument("id", help="as `manta key list` shows it; it is also the key's second part")


def add_grant_arguments(parser: argparse.ArgumentParser) -> None:
    """Whom it is for and what he may do; `manta token` has the same."""
    parser.add_argument("--tenant", default="default", metavar="NAME", help="who pays (default: %(default)s)")
    parser.add_argument("--models", default=ANY_MODEL, metavar="A,B", help="served names (default: all)")
    parser.add_argument("--admin", action="store_true", help="may see and change what belongs to all tenants")
    parser.add_argument("--metrics", action="store_true", help="may read /metrics, and nothing else")


def add_key_argument(parser: argparse.ArgumentParser) -> None:
    """Of commands that ask a server."""
    parser.add_argument("--key", metavar="KEY", help=f"API key or token (default: ${KEY_VARIABLE})")


def grant_of(args: argparse.Namespace) -> tuple[str, tuple[str, ...]]:
    """Tenant and models as given; ConfigError when they cannot be."""
    if not is_tenant(args.tenant):
        raise ConfigError("--tenant", args.tenant, "give 1 to 64 letters, digits, `.`, `_` or `-`")
    models = tuple(model.strip() for model in args.models.split(","))
    if args.metrics and (args.admin or models != (ANY_MODEL,)):
        raise ConfigError("--metrics", True, "is for nothing else: leave out --admin and --models")
    if not all(models):
        raise ConfigError("--models", args.models, "give served names with commas in between, or `*` for all")
    return args.tenant, models


def run(args: argparse.Namespace) -> int:
    if args.verb == "create":
        return _create(args)
    found = _read(args.file)
    if args.verb == "list":
        _show(found)
        return 0
    if args.id not in [key.id for key in found.keys]:
        raise ConfigError("id", args.id, f"no such key in {args.file}; `manta key list` shows all")
    revoked = [msgspec.structs.replace(key, revoked=key.revoked or key.id == args.id) for key in found.keys]
    _write(args.file, KeyFile(revoked))
    print(f"{args.id} is revoked; running gateways refuse it within a second")
    return 0


def _create(args: argparse.Namespace) -> int:
    tenant, models = grant_of(args)
    expires = None
    if args.days is not None:
        expires = (datetime.now(UTC) + timedelta(days=args.days)).replace(microsecond=0)
    key, kept = make_key(tenant, models, args.admin, expires, args.metrics)
    before = _read(args.file).keys if args.file.exists() else []
    _write(args.file, KeyFile([*before, kept]))
    Console(stderr=True, highlight=False).print(
        f"made key {kept.id} of tenant {tenant} in {args.file}; it is not shown again:", soft_wrap=True
    )
    print(key)
    return 0


def _read(file: Path) -> KeyFile:
    try:
        return read_key_file(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError("--file", str(file), f"cannot be read: {error}") from None


def _write(file: Path, found: KeyFile) -> None:
    """Whole or not at all: gateways may read it at any moment."""
    try:
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        with os.fdopen(descriptor, "wb") as output:
            output.write(write_key_file(found))
            os.fsync(descriptor)
        if file.exists():
            Path(name).chmod(file.stat().st_mode & 0o777)
        Path(name).replace(file)
    except OSError as error:
        raise ConfigError("--file", str(file), f"cannot be written: {error}") from None


def _show(found: KeyFile) -> None:
    table = Table("id", "tenant", "models", "may", "expires", "")
    for key in found.keys:
        table.add_row(
            key.id, key.tenant, "" if key.metrics else ", ".join(key.models), _more(key), _expiry(key),
            "revoked" if key.revoked else "",
        )  # fmt: skip
    Console(highlight=False).print(table)


def _more(key: ApiKey) -> str:
    return "metrics" if key.metrics else "admin" if key.admin else ""


def _expiry(key: ApiKey) -> str:
    return "never" if key.expires is None else key.expires.isoformat()
