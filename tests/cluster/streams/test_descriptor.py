"""What a shard is told of a request."""

from cluster.generation import RequestContext
from cluster.streams.descriptor import MAX_BLOCKS, identify
from engine.block_hash import block_hashes, root_hash
from engine.request import GenerateRequest, SamplingParams
from tests.cluster.router_world import engine_info

INFO = engine_info(block_size=4)
CONTEXT = RequestContext(model="m", tenant="t")


def asked(prompt: list[int], salt: str = "t", **sampling: object) -> GenerateRequest:
    params = SamplingParams(**({"max_tokens": 5, "seed": 1} | sampling))  # type: ignore[arg-type]
    return GenerateRequest(request_id="q", prompt_token_ids=prompt, sampling=params, cache_salt=salt)


def test_the_blocks_are_named_as_the_engine_names_them() -> None:
    prompt = list(range(11))
    expected = list(block_hashes(prompt, 4, root_hash(INFO.weights_revision, "", "t")))
    assert identify(asked(prompt), CONTEXT, INFO).block_hashes == expected and len(expected) == 2
    assert len(identify(asked([1] * 10_000), CONTEXT, INFO).block_hashes) == MAX_BLOCKS
    assert identify(asked(prompt), CONTEXT, None).block_hashes == []


def test_the_digest_names_what_is_asked_and_by_whom_not_when() -> None:
    digest = identify(asked([1, 2]), CONTEXT, INFO).digest
    assert identify(asked([1, 2], seed=99), CONTEXT, None).digest == digest
    others = [
        identify(asked([1, 3]), CONTEXT, INFO),
        identify(asked([1, 2], temperature=0.5), CONTEXT, INFO),
        identify(asked([1, 2]), RequestContext(model="m", tenant="u"), INFO),
        identify(asked([1, 2]), RequestContext(model="n", tenant="t"), INFO),
    ]
    assert digest not in {other.digest for other in others}


def test_requests_that_begin_alike_go_to_the_same_shard() -> None:
    key = identify(asked([1, 2, 3, 4, 5]), CONTEXT, INFO).shard_key
    assert identify(asked([1, 2, 3, 4, 6, 7, 8, 9]), CONTEXT, INFO).shard_key == key
    assert identify(asked([1, 2, 3, 4, 5], salt="u"), CONTEXT, INFO).shard_key != key
    assert identify(asked([1, 2]), CONTEXT, INFO).shard_key != identify(asked([1, 3]), CONTEXT, INFO).shard_key
