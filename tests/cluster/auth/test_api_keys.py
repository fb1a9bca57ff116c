"""API keys: what is kept of them, and whom they name."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from cluster.auth.api_keys import ApiKey, ApiKeys, KeyFile, make_key, read_key_file, write_key_file
from cluster.auth.credential import BadCredential
from tests.cluster.auth.auth_world import NOW

EXPIRES = datetime.fromtimestamp(NOW + 60, UTC)


def read_again(*keys: ApiKey) -> ApiKeys:
    return ApiKeys.read(write_key_file(KeyFile(list(keys))))


def test_a_key_names_tenant_and_models() -> None:
    key, kept = make_key("acme", ["small", "large"], True, EXPIRES)
    found = read_again(make_key("other", ["*"], False, None)[1], kept).verify(key, NOW)
    who = found.principal
    assert (who.tenant, who.models, who.is_admin, who.key_id) == ("acme", {"small", "large"}, True, kept.id)
    assert (found.expires_at, found.ids) == (NOW + 60, (kept.id,))


def test_the_file_does_not_hold_the_key() -> None:
    key, kept = make_key("acme", ["*"], False, None)
    secret = key.rpartition("_")[2]
    assert key.startswith("manta_") and len(secret) == 48
    assert secret not in write_key_file(KeyFile([kept])).decode()
    assert read_again(kept).verify(key, NOW).principal.models is None


def test_what_is_refused() -> None:
    key, kept = make_key("acme", ["*"], False, EXPIRES)
    keys = read_again(kept)
    swapped = key[:-1] + ("0" if key[-1] != "0" else "1")
    other = make_key("acme", ["*"], False, None)[0]
    for wrong in (
        other,
        swapped,
        key[:-1],
        key + "0",
        key.upper(),
        f"manta_{kept.id}_",
        "manta_",
        f"manta_{kept.sha256}",
    ):
        with pytest.raises(BadCredential, match="unknown_key"):
            keys.verify(wrong, NOW)
    with pytest.raises(BadCredential, match="expired"):
        keys.verify(key, NOW + 60)
    with pytest.raises(BadCredential, match="revoked"):
        read_again(msgspec.structs.replace(kept, revoked=True)).verify(key, NOW)


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "xyz"},
        {"sha256": "0"},
        {"sha256": "A" * 64},
        {"tenant": ""},
        {"tenant": "a\n"},
        {"models": []},
        {"models": "small"},
        {"expires": "2030-01-01T00:00:00"},
        {"expires": 1.0},
        {"modles": ["small"]},
    ],
    ids=str,
)
def test_a_file_with_a_mistake_is_refused_whole(changed: dict[str, Any]) -> None:
    kept = msgspec.to_builtins(make_key("acme", ["*"], False, None)[1])
    with pytest.raises(ValueError, match=r"."):
        read_key_file(msgspec.json.encode({"keys": [kept | changed]}))


def test_two_keys_of_one_id_are_refused() -> None:
    kept = make_key("acme", ["*"], False, None)[1]
    with pytest.raises(ValueError, match="same id"):
        read_key_file(write_key_file(KeyFile([kept, kept])))
