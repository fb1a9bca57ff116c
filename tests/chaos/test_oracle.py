"""The oracle on histories written by hand, and on a real server with bugs planted between it and the client."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn

from cluster.config import CHAIN_MODEL, GatewayConfig, ModelConfig
from cluster.gateway.app import build_gateway
from cluster.gateway.http_listener import listener_settings
from cluster.text.served_model import GenerationDefaults, ServedModel
from cluster.text.tokenizer import Tokenizer
from engine.chain_executor import next_chain_token
from scripts.chaos_run.journal import ChoiceJournal, Journal
from scripts.chaos_run.oracle import Wrong, judge
from scripts.chaos_run.self_check import BlindOracle, check_oracle
from scripts.chaos_run.served_app import free_port
from scripts.chaos_run.stream_client import Receive, StreamClient, as_it_comes
from scripts.chaos_run.workload import Ask, ChainModel, ChainWorkload, Expected
from tests.deployments.serving_world import HOST, VOCAB, serving_world, until

LOCATION = ModelConfig(model=CHAIN_MODEL).location
MODEL = ChainModel(VOCAB, Tokenizer.load(Path(LOCATION)))
WORKLOAD = ChainWorkload(3, MODEL, [(13, 40)])
ASK = Ask("r", [1, 2, 3], 8)
ANSWER = [10, 11, 12, 13, 14, 15, 16, 17]


def read(token_ids: list[int], *, done: int = 1, errors: tuple[str, ...] = (), text: str = "") -> Journal:
    choice = ChoiceJournal(array("d", [0.0]), token_ids, text, ["length"] * done)
    usage = {"prompt_tokens": 3, "completion_tokens": len(ANSWER)}
    return Journal(ASK, 0.0, [choice], num_done=done, errors=list(errors), usages=[usage] * done)


def kinds(journal: Journal, near_ties: frozenset[int] = frozenset()) -> list[Wrong]:
    verdict = judge(journal, [Expected(ANSWER, "", "length", near_ties)])
    return [violation.kind for violation in verdict.violations]


def test_the_whole_answer_is_right() -> None:
    assert kinds(read(ANSWER)) == []


@pytest.mark.parametrize(
    ("got", "kind"),
    [
        (ANSWER[:3] + ANSWER[4:], Wrong.LOST),
        (ANSWER[:3] + ANSWER[6:], Wrong.LOST),
        (ANSWER[:-1], Wrong.LOST),
        ([], Wrong.LOST),
        (ANSWER[:4] + ANSWER[3:], Wrong.DUPLICATED),
        (ANSWER[:5] + ANSWER[3:], Wrong.DUPLICATED),
        ([*ANSWER, ANSWER[-1]], Wrong.DUPLICATED),
        ([*ANSWER[:3], 99, *ANSWER[4:]], Wrong.CHANGED),
        ([*ANSWER, 99], Wrong.CHANGED),
    ],
)
def test_tokens_that_are_not_the_answer_are_named(got: list[int], kind: Wrong) -> None:
    assert kinds(read(got)) == [kind]


def test_an_error_is_the_clients_and_its_beginning_must_still_be_right() -> None:
    assert kinds(read(ANSWER[:3], done=0, errors=("broke",))) == [Wrong.CLIENT_ERROR]
    assert kinds(read([10, 12, 13], done=0, errors=("broke",))) == [Wrong.CLIENT_ERROR, Wrong.LOST]


def test_done_after_an_error_and_a_clean_end_without_done_are_wrong() -> None:
    assert Wrong.CHANGED in kinds(read(ANSWER, errors=("broke",)))
    assert Wrong.LOST in kinds(read(ANSWER, done=0))


def test_the_usage_is_told_once_and_true() -> None:
    twice = read(ANSWER)
    twice.usages *= 2
    assert kinds(twice) == [Wrong.USAGE]
    false = read(ANSWER)
    false.usages[0]["completion_tokens"] += 1
    assert kinds(false) == [Wrong.USAGE]


def test_the_text_and_the_ids_of_events_are_judged_too() -> None:
    assert kinds(read(ANSWER, text="x")) == [Wrong.CHANGED]
    journal = read(ANSWER)
    journal.wrong_ids.append("event id s:5 came when 4 had been read")
    assert kinds(journal) == [Wrong.CHANGED]


def test_a_near_tie_excuses_what_follows_it_and_nothing_else() -> None:
    verdict = judge(read([*ANSWER[:3], 99, 98]), [Expected(ANSWER, "", "length", frozenset({3}))])
    assert (verdict.violations, verdict.num_near_ties) == ([], 1)
    assert kinds(read([*ANSWER[:2], 99, 98]), frozenset({3})) == [Wrong.CHANGED]


def test_the_workloads_answers_are_the_chains() -> None:
    """The harness computes the chain from its definition; here the two are compared."""
    tokens = [5, 6, 7]
    for _ in range(20):
        tokens.append(next_chain_token(tokens, VOCAB))
    assert MODEL.tokens([5, 6, 7], 20) == tokens[3:]


def test_a_seed_gives_the_same_requests_whatever_ran_before() -> None:
    again = ChainWorkload(3, MODEL, [(13, 40)])
    later = again.ask(9)
    assert [again.ask(k) for k in range(9)] == [WORKLOAD.ask(k) for k in range(9)]
    assert later == WORKLOAD.ask(9) != ChainWorkload(4, MODEL, [(13, 40)]).ask(9)


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """A gateway and two chain engines on real sockets, without Ray; the URL."""
    model = ServedModel.load("m", LOCATION)
    port = free_port()
    async with serving_world(2) as world:
        plain = ServedModel(name="m", tokenizer=model.tokenizer, defaults=GenerationDefaults())
        app = build_gateway({"m": plain}, world.dispatcher, GatewayConfig())
        server = uvicorn.Server(listener_settings(app, host=HOST, port=port))
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        try:
            yield f"http://{HOST}:{port}"
        finally:
            server.should_exit = True
            await serving


async def test_every_planted_bug_is_caught_and_honest_answers_pass() -> None:
    async with served() as url:
        assert await check_oracle(WORKLOAD, lambda receive: StreamClient(url, "m", 20.0, receive)) == 9


async def test_a_bug_that_is_not_caught_stops_everything() -> None:
    def blind(receive: Receive) -> StreamClient:
        return StreamClient(url, "m", 20.0, as_it_comes)

    async with served() as url:
        with pytest.raises(BlindOracle, match="planted and not caught: one token dropped"):
            await check_oracle(WORKLOAD, blind)


async def test_all_kinds_of_requests_are_answered_as_the_oracle_says() -> None:
    async with served() as url:
        client = StreamClient(url, "m", 20.0)
        asked = [WORKLOAD.ask(number) for number in range(60)]
        journals = await asyncio.gather(*(client.run(ask) for ask, _ in asked))
    verdicts = [judge(journal, expected) for journal, (_, expected) in zip(journals, asked, strict=True)]
    assert [str(violation) for verdict in verdicts for violation in verdict.violations] == []
    assert len({ask.name.split("-")[1] for ask, _ in asked}) >= 8
