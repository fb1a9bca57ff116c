"""What a shard keeps of streams: for whom, how long, and how much of it."""

from cluster.frames import Fetch, Journal, Keep, Release, Stored, Taken
from cluster.router.journal_store import MAX_STREAM_BYTES, JournalStore

TTL_S = 60.0


def keep(stream: str = "s", epoch: int = 0, tenant: str = "t", call: bytes = b"call") -> Keep:
    return Keep(stream, epoch, tenant, TTL_S, call, [], "m")


def fetch(store: JournalStore, stream: str = "s", tenant: str = "t", now: float = 0.0) -> Stored:
    *_, (gateway, answer) = store.on_fetch("asker", Fetch(7, stream, tenant), now)
    assert gateway == "asker"
    assert isinstance(answer, Stored)
    assert answer.ticket == 7
    return answer


def test_it_gives_back_what_it_was_told() -> None:
    store = JournalStore(1 << 20)
    assert store.on_keep("g", keep()) == []
    store.on_journal(Journal([("s", 0, b"1"), ("unknown", 0, b"x"), ("s", 0, b"2")]))
    assert fetch(store) == Stored(7, 1, b"call", [b"1", b"2"])


def test_other_tenants_get_what_is_said_of_unknown_streams() -> None:
    store = JournalStore(1 << 20)
    store.on_keep("g", keep())
    assert store.on_fetch("asker", Fetch(7, "s", "other"), 0.0) == [("asker", Stored(7))]
    assert fetch(store, "unknown") == Stored(7)
    store.on_journal(Journal([("s", 0, b"still running")]))
    assert fetch(store).journal == [b"still running"]


def test_who_may_not_use_the_model_takes_the_stream_from_nobody() -> None:
    store = JournalStore(1 << 20)
    store.on_keep("g", keep())
    for models in ([], ["another"]):
        assert store.on_fetch("asker", Fetch(7, "s", "t", models), 0.0) == [("asker", Stored(7))]
    store.on_journal(Journal([("s", 0, b"still running")]))
    assert store.on_fetch("asker", Fetch(7, "s", "t", ["another", "m"]), 0.0) == [
        ("g", Taken("s", 0)),
        ("asker", Stored(7, 1, b"call", [b"still running"])),
    ]


def test_time_counts_from_the_end_or_the_loss() -> None:
    store = JournalStore(1 << 20)
    for stream in ("ended", "lost", "running"):
        store.on_keep("other" if stream == "running" else "g", keep(stream))
    store.on_release(Release("ended", 0), now=1000.0)
    store.on_gateway_lost("g", now=1030.0)
    store.on_tick(1059.0)
    assert len(store) == 3
    store.on_tick(1060.0)
    assert fetch(store, "ended", now=1060.0) == Stored(7)
    assert fetch(store, "lost", now=1089.0).call == b"call"
    assert fetch(store, "lost", now=1149.0) == Stored(7), "expired, though no tick has come"
    assert fetch(store, "running", now=5000.0).call == b"call"


def test_a_change_of_hands_fences_the_former_owner() -> None:
    store = JournalStore(1 << 20)
    store.on_keep("old", keep())
    told = store.on_fetch("new", Fetch(1, "s", "t"), 0.0)
    assert told == [("old", Taken("s", 0)), ("new", Stored(1, 1, b"call", []))]
    store.on_journal(Journal([("s", 0, b"late")]))
    store.on_release(Release("s", 0), 0.0)
    assert store.on_keep("old", keep()) == [("old", Taken("s", 0))]
    assert store.on_keep("new", keep(epoch=1)) == []
    assert store.on_keep("new", keep(epoch=1)) == [], "said again after a lost connection"
    assert store.on_keep("third", keep(epoch=1)) == [("third", Taken("s", 1))]
    store.on_journal(Journal([("s", 1, b"good"), ("s", 0, b"late")]))
    assert fetch(store).journal == [b"good"]


def test_a_copy_of_a_later_epoch_replaces_one_that_was_never_fetched() -> None:
    store = JournalStore(1 << 20)
    store.on_keep("old", keep())
    assert store.on_keep("new", keep(epoch=3)) == [("old", Taken("s", 0))]
    assert fetch(store).epoch == 4


def test_memory_is_bounded_and_the_streams_that_nobody_runs_go_first() -> None:
    store = JournalStore(100_000)
    for number in range(10):
        store.on_keep("g", keep(f"s{number}", call=b"c" * 5000))
    store.on_release(Release("s9", 0), 0.0)
    store.on_journal(Journal([("s0", 0, b"1" * 44_000)]))
    assert store.num_bytes <= 100_000
    assert len(store) == 9
    assert fetch(store, "s9") == Stored(7)
    store.on_journal(Journal([("s2", 0, b"2" * 10_000)]))
    assert fetch(store, "s1") == Stored(7), "silent for longest"
    assert fetch(store, "s0").call
    store.on_gateway_lost("g", 0.0)
    store.on_tick(1e9)
    assert (len(store), store.num_bytes) == (0, 0)


def test_a_stream_that_is_too_long_is_kept_from_its_beginning() -> None:
    store = JournalStore(4 * MAX_STREAM_BYTES)
    store.on_keep("g", keep())
    half = b"x" * (MAX_STREAM_BYTES // 2)
    store.on_journal(Journal([("s", 0, b"first"), ("s", 0, half), ("s", 0, half)]))
    assert fetch(store).journal == [b"first", half]
