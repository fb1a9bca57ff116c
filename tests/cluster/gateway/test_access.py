"""With auth on: what is open, what a credential opens, and what another tenant is told. Every route is walked."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.api.schema_tokens import Version
from cluster.auth.access import Access
from cluster.auth.api_keys import ApiKeys, make_key
from cluster.auth.config import Family
from cluster.config import GatewayConfig
from cluster.gateway import app as app_module
from cluster.gateway.app import build_gateway
from cluster.gateway.endpoints import Endpoint, list_endpoints
from cluster.gateway.http_exchange import send_json
from cluster.gateway.layers import bearer
from cluster.health.board import HealthBoard
from cluster.metrics.gateway_metrics import GatewayMetrics
from cluster.streams.dispatcher import Dispatcher
from tests.cluster.auth.auth_world import Clock, Publisher, authenticator, key_of, key_set, token
from tests.cluster.gateway_world import client, local_generator, served_model
from tests.cluster.local_engine import LocalGenerator

#: All that anybody may see.
OPEN = {
    "/health", "/v2/health/live", "/health/live", "/health/ready", "/health/progress",
    "/console", "/console/console.js", "/console/console.css",
}  # fmt: skip
#: All that users may not.
FOR_ADMINS = {"/metrics", "/console/fleet"}

USER, USER_KEPT = make_key("acme", ["small"], False, None)
ADMIN, ADMIN_KEPT = make_key("ops", ["*"], True, None)
READER, READER_KEPT = make_key("ops", ["*"], False, None, metrics=True)
WRONG = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": f"Bearer {USER[:-1]}"},
    {"Authorization": f"Basic {USER}"},
    {"X-Tenant": "acme", "X-Tenant-Id": "acme"},
    {"api-key": USER},
    {"Cookie": f"Authorization=Bearer {USER}"},
]


def protected(generator: LocalGenerator, **settings: Any) -> ASGIApp:
    asked = authenticator(
        Publisher(key_set(key_of(Family.EDDSA))),
        Clock(),
        api_keys=lambda: ApiKeys([USER_KEPT, ADMIN_KEPT, READER_KEPT]),
    )
    models = {name: msgspec.structs.replace(served_model(), name=name) for name in ("small", "large")}
    return build_gateway(
        models, generator, GatewayConfig(**settings), bearer(asked),
        metrics=GatewayMetrics(Dispatcher("g")), board=HealthBoard(list(models)),
    )  # fmt: skip


def with_key(app: ASGIApp, key: str) -> httpx.AsyncClient:
    http = client(app)
    http.headers["Authorization"] = f"Bearer {key}"
    return http


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """Path and method of everything that the app can route to."""
    while not hasattr(app, "routes"):
        app = app._app
    for route in app.routes:
        assert isinstance(route, Route), f"{route} is walked by nobody"
        for method in sorted(route.methods or ()):
            yield route.path.replace("{model:path}", "small").replace("{stream}", "s"), method


async def test_nothing_but_the_health_probe_is_open() -> None:
    async with local_generator() as generator, client(app := protected(generator)) as http:
        walked = list(routes(app))
        assert len(walked) > 15 and {path for path, _ in walked} >= OPEN
        refusals = set()
        for path, method in [*walked, ("/nowhere", "GET"), ("/", "GET"), ("//health", "GET"), ("/health/", "GET")]:
            for headers in WRONG:
                answer = await http.request(method, path, headers=headers)
                if path in OPEN:
                    assert answer.status_code in (200, 503), path
                    continue
                assert answer.status_code == 401, f"{method} {path} is open"
                assert answer.headers["www-authenticate"] == 'Bearer realm="manta"'
                refusals.add(answer.content if method != "HEAD" else b"")
        assert len(refusals - {b""}) == 1, "a refusal must not tell why"


async def test_a_credential_opens_what_is_for_users() -> None:
    async with local_generator() as generator:
        app = protected(generator)
        for key in (USER, token()):
            async with with_key(app, key) as http:
                for path, method in routes(app):
                    status = (await http.request(method, path)).status_code
                    assert (status == 403) == (path in FOR_ADMINS) and status != 401, path
                assert (await http.get("/nowhere")).status_code == 404


async def test_health_names_no_model_to_strangers() -> None:
    async with local_generator() as generator, client(protected(generator)) as http:
        answers = [await http.get(f"/health/ready{query}") for query in ("", "?model=small", "?model=egral")]
    assert {answer.text for answer in answers} == {'{"status":"unhealthy","why":[]}'}
    assert {answer.status_code for answer in answers} == {503}


async def test_two_credentials_are_none() -> None:
    async with local_generator() as generator, client(protected(generator)) as http:
        said = [("Authorization", f"Bearer {USER}"), ("Authorization", f"Bearer {ADMIN}")]
        assert (await http.get("/v1/models", headers=said)).status_code == 401


async def test_what_is_for_admins(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, json.dumps([str(name, "latin-1") for name, _ in scope["headers"]]).encode())

    one = Endpoint(method="GET", path="/admin", access=Access.ADMIN, summary="All of it", answer=Version, run=run)
    monkeypatch.setattr(app_module, "list_endpoints", lambda *args: [*list_endpoints(*args), one])
    async with local_generator() as generator:
        app = protected(generator)
        async with with_key(app, USER) as user, with_key(app, ADMIN) as admin, client(app) as nobody:
            assert (await nobody.get("/admin")).status_code == 401
            refused = await user.get("/admin")
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_required")
            seen = await admin.get("/admin", headers={"X-Tenant": "acme", "X-Tenant-Name": "acme", "X-Other": "o"})
        assert seen.status_code == 200 and "x-other" in seen.json()
        assert not {"authorization", "x-tenant", "x-tenant-name"} & set(seen.json())


def test_an_endpoint_says_who_may_call_it() -> None:
    with pytest.raises(TypeError, match="access"):
        Endpoint(method="GET", path="/x", summary="", run=lambda *_: None)  # type: ignore[call-arg,arg-type,return-value]


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ("/v1/completions", {"prompt": "Hi"}),
    ("/v1/tokenize", {"prompt": "Hi"}),
    ("/v1/detokenize", {"tokens": [1]}),
]


async def test_models_out_of_scope_are_not_there() -> None:
    """A model that one may not use and one that nobody serves have the same answer."""
    async with local_generator() as generator:
        app = protected(generator)
        async with with_key(app, USER) as user, with_key(app, ADMIN) as admin:
            listed = [card["id"] for card in (await user.get("/v1/models")).json()["data"]]
            assert listed == ["small"]
            assert len((await admin.get("/v1/models")).json()["data"]) == 2
            answers = [[await user.get(f"/v1/models/{name}") for name in ("large", "egral")]]
            for path, body in BODIES:
                assert (await user.post(path, json=body | {"model": "small"})).status_code == 200
                assert (await admin.post(path, json=body | {"model": "large"})).status_code == 200
                answers.append([await user.post(path, json=body | {"model": name}) for name in ("large", "egral")])
        for hidden, absent in answers:
            assert hidden.status_code == absent.status_code == 404
            assert hidden.text == absent.text.replace("egral", "large")
            assert hidden.headers.keys() == absent.headers.keys()


async def test_who_may_read_the_metrics_may_do_nothing_else() -> None:
    async with local_generator() as generator, with_key(app := protected(generator), READER) as http:
        assert (await http.get("/metrics")).status_code == 200
        assert (await http.get("/console/fleet")).status_code == 403
        reached = {path for path, method in routes(app) if (await http.request(method, path)).status_code != 403}
    assert {path for path in reached if not path.startswith("/docs")} == OPEN | {"/metrics", "/openapi.json"}
