"""`manta token`: for development, an issuer of one's own: a key pair in a folder, and tokens signed with it."""

import argparse
import os
import secrets
import time
from pathlib import Path

import msgspec
from joserfc import jwt
from joserfc.jwk import OKPKey
from rich.console import Console

from cluster.auth.credential import ANY_MODEL
from cluster.auth.tokens import ADMIN_SCOPE, MAX_LIFETIME_S, METRICS_SCOPE, MODEL_SCOPE
from deployments.commands.key import add_grant_arguments, grant_of
from engine.errors import ConfigError

ISSUER, AUDIENCE = "manta-development", "manta"
PRIVATE_FILE, PUBLIC_FILE = "private.json", "jwks.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_grant_arguments(parser)
    parser.add_argument("--subject", default="developer", metavar="NAME", help="`sub` (default: %(default)s)")
    parser.add_argument("--ttl", type=float, default=3600.0, metavar="S", help="seconds to live (default: an hour)")
    parser.add_argument(
        "--keys", type=Path, default=Path("manta_issuer"), metavar="DIR", help="folder of the key pair, made if missing"
    )


def run(args: argparse.Namespace) -> int:
    tenant, models = grant_of(args)
    if not 0 < args.ttl <= MAX_LIFETIME_S:
        raise ConfigError("--ttl", args.ttl, f"gateways take tokens of at most {MAX_LIFETIME_S:.0f} s")
    key = _key_pair(args.keys)
    now = int(time.time())
    scopes = [f"{MODEL_SCOPE}{model}" for model in ([ANY_MODEL] if ANY_MODEL in models else models)]
    if args.metrics:
        scopes = [METRICS_SCOPE]
    claims = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": args.subject, "jti": secrets.token_hex(8),
        "iat": now, "exp": now + int(args.ttl), "tenant": tenant,
        "scope": " ".join([*scopes, ADMIN_SCOPE] if args.admin else scopes),
    }  # fmt: skip
    print(jwt.encode({"alg": "Ed25519", "kid": key.kid}, claims, key, algorithms=["Ed25519"]))
    return 0


def _key_pair(folder: Path) -> OKPKey:
    """The one in the folder; a new one if there is none."""
    private = folder / PRIVATE_FILE
    try:
        if private.exists():
            return OKPKey.import_key(msgspec.json.decode(private.read_bytes()))
        folder.mkdir(parents=True, exist_ok=True)
        key = OKPKey.generate_key("Ed25519", auto_kid=True)
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
            output.write(msgspec.json.encode(key.as_dict(private=True)))
        public = folder / PUBLIC_FILE
        public.write_bytes(msgspec.json.encode({"keys": [key.as_dict(private=False)]}))
    except (OSError, ValueError) as error:
        raise ConfigError("--keys", str(folder), f"cannot be used: {error}") from None
    _explain(public.absolute())
    return key


def _explain(public: Path) -> None:
    issuer = {"issuer": ISSUER, "audience": AUDIENCE, "family": "EdDSA", "keys": str(public)}
    shown = msgspec.yaml.encode({"auth": {"issuers": [issuer]}}).decode()
    Console(stderr=True, highlight=False).print(
        f"made a key pair; a gateway takes its tokens with\n\n{shown}", soft_wrap=True
    )
