"""`manta key` and `manta token`: what they write, and that gateways take it."""

import stat
from pathlib import Path

import pytest

from cluster.auth.config import AuthConfig, IssuerConfig
from cluster.auth.principal import Principal
from cluster.errors import Unauthorized
from deployments import cli
from deployments.gateway_auth import open_auth


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out.strip()


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 2
    return capsys.readouterr().err


async def whose(config: AuthConfig, credential: str) -> Principal:
    return await open_auth(config)(f"Bearer {credential}")


async def test_a_key_from_creation_to_revocation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, config = tmp_path / "keys.json", AuthConfig(api_keys=str(tmp_path / "keys.json"))
    words = ("key", "--file", str(file))
    first = printed(capsys, *words, "create", "--tenant", "acme", "--models", "a, b", "--days", "1")
    second = printed(capsys, *words, "create", "--admin")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    user, admin = await whose(config, first), await whose(config, second)
    assert (user.tenant, user.models, user.is_admin) == ("acme", {"a", "b"}, False)
    assert (admin.tenant, admin.models, admin.is_admin) == ("default", None, True)
    reader = await whose(config, printed(capsys, *words, "create", "--metrics"))
    assert (reader.models, reader.is_admin, reader.reads_metrics) == (frozenset(), False, True)
    assert "--metrics" in refused(capsys, *words, "create", "--metrics", "--admin")
    listed = printed(capsys, *words, "list")
    assert user.key_id in listed and admin.key_id in listed and "acme" in listed
    assert not any(key.rpartition("_")[2] in listed + file.read_text() for key in (first, second))
    printed(capsys, *words, "revoke", user.key_id)
    assert "revoked" in printed(capsys, *words, "list") and stat.S_IMODE(file.stat().st_mode) == 0o640
    with pytest.raises(Unauthorized):
        await whose(config, first)
    assert (await whose(config, second)).is_admin
    assert "no such key" in refused(capsys, *words, "revoke", "00000000")
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"], "no half-written files"


async def test_tokens_of_one_issuer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "issuer"
    first = printed(capsys, "token", "--keys", str(folder), "--tenant", "acme", "--models", "a", "--subject", "me")
    second = printed(capsys, "token", "--keys", str(folder), "--admin")
    assert stat.S_IMODE((folder / "private.json").stat().st_mode) == 0o600
    assert '"d"' not in (folder / "jwks.json").read_text()
    issuer = IssuerConfig(
        issuer="manta-development",
        audience="manta",
        family="EdDSA",
        keys=str(folder / "jwks.json"),  # type: ignore[arg-type]
    )
    user, admin = [await whose(AuthConfig(issuers=(issuer,)), token) for token in (first, second)]
    assert (user.tenant, user.models, user.is_admin, user.key_id) == ("acme", {"a"}, False, "me")
    assert (admin.tenant, admin.models, admin.is_admin) == ("default", None, True)


async def test_a_token_that_reads_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = printed(capsys, "token", "--keys", str(tmp_path / "issuer"), "--metrics")
    keys = str(tmp_path / "issuer" / "jwks.json")
    issuer = IssuerConfig(issuer="manta-development", audience="manta", family="EdDSA", keys=keys)  # type: ignore[arg-type]
    reader = await whose(AuthConfig(issuers=(issuer,)), made)
    assert (reader.models, reader.is_admin, reader.reads_metrics) == (frozenset(), False, True)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    words = ("key", "--file", str(file))
    assert "cannot be read" in refused(capsys, *words, "list")
    assert "--tenant = 'a b'" in refused(capsys, *words, "create", "--tenant", "a b")
    assert "--models = 'a,,b'" in refused(capsys, *words, "create", "--models", "a,,b")
    file.write_text("{")
    assert "cannot be read" in refused(capsys, *words, "create")
    assert file.read_text() == "{", "what cannot be read is not overwritten"
    assert "--ttl" in refused(capsys, "token", "--keys", str(tmp_path), "--ttl", "100000")
    assert "cannot be written" in refused(capsys, "key", "--file", str(tmp_path / "no" / "keys.json"), "create")
