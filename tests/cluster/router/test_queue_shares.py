"""Who may come into a full queue, and who has to go for it."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.config import RouterConfig, TenantConfig
from cluster.frames import Enqueue, Refuse
from cluster.router.router import Router
from cluster.routing.policy import policy_of

WEIGHTS = {"a": 1.0, "b": 1.0, "c": 3.0}


def ask(name: str, tenant: str, tokens: int = 4, attempt: int = 0) -> Enqueue:
    return Enqueue(name, attempt, "m", tenant, 0, 60.0, tokens, 2)


def shard_of(max_requests: int, max_tokens: int = 10_000) -> Router:
    tenants = {name: TenantConfig(weight=weight) for name, weight in WEIGHTS.items()}
    config = RouterConfig(max_queued_requests=max_requests, max_queued_tokens=max_tokens, tenants=tenants)
    return Router(config, policy_of(config))


def refusals(shard: Router, *asked: Enqueue) -> list[tuple[str, str]]:
    sent = [message for one in asked for _, message in shard.on_enqueue("g", one, 0.0)]
    return [(message.request_id, message.code) for message in sent if isinstance(message, Refuse)]


def test_the_newest_of_the_largest_goes_with_429_for_one_within_its_share() -> None:
    shard = shard_of(10)
    for number in range(8):
        shard.on_enqueue("g", ask(f"a{number}", "a"), 0.0)
    assert refusals(shard, ask("b0", "b"), ask("b1", "b")) == []
    assert refusals(shard, ask("b2", "b")) == [("a7", "rate_limit_exceeded")]
    assert refusals(shard, ask("b3", "b"), ask("b4", "b")) == [
        ("a6", "rate_limit_exceeded"),
        ("a5", "rate_limit_exceeded"),
    ]
    assert refusals(shard, ask("b5", "b")) == [("b5", "server_is_overloaded")], "both have their half"


def test_a_migrating_stream_is_never_pushed_out() -> None:
    shard = shard_of(4)
    for number in range(4):
        shard.on_enqueue("g", ask(f"a{number}", "a", attempt=1), 0.0)
    assert refusals(shard, ask("b", "b")) == [("b", "server_is_overloaded")]


@given(
    st.integers(4, 30),
    st.lists(st.tuples(st.sampled_from(sorted(WEIGHTS)), st.sampled_from([1, 30, 90])), max_size=120),
)
def test_nobody_within_its_share_is_refused(max_requests: int, arrivals: list[tuple[str, int]]) -> None:
    max_tokens = 100 * max_requests // 2
    shard = shard_of(max_requests, max_tokens)
    for number, (tenant, tokens) in enumerate(arrivals):
        queues = shard.queues()
        waiting = queues["m"].shares.tenants() if queues else {}
        mine = waiting.get(tenant, {"requests": 0, "tokens": 0})
        share = WEIGHTS[tenant] / sum(WEIGHTS[name] for name in {*waiting, tenant})
        is_within = (
            mine["requests"] + 1 <= 0.999 * share * max_requests
            and mine["tokens"] + tokens <= 0.999 * share * max_tokens
        )
        refused = refusals(shard, ask(f"q{number}", tenant, tokens))
        if is_within and set(waiting) - {tenant}:
            assert f"q{number}" not in [name for name, _ in refused]
        shard.check_invariants()
        shares = shard.queues()["m"].shares
        assert shares.num_requests <= max_requests and (shares.num_tokens <= max_tokens or shares.num_requests == 1)
