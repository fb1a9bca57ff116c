"""Whom the router believes to hold which prefix."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.routing.prefix_index import PrefixIndex


def hashes(text: str) -> list[bytes]:
    """A block hash names all before it: prefixes of `text`."""
    return [text[: length + 1].encode() for length in range(len(text))]


def test_the_longest_common_prefix_is_found() -> None:
    index = PrefixIndex()
    index.note("a", hashes("system prompt, one"), 100)
    index.note("b", hashes("system prompt, two"), 100)
    asked = hashes("system prompt, out")
    assert index.num_known(asked) == len("system prompt, o")
    assert (index.num_held("a", asked), index.num_held("b", asked)) == (16, 15)
    assert list(index.holders(asked[14])) == ["b", "a"]
    assert list(index.holders(asked[15])) == ["a"]
    index.forget("a")
    assert index.num_known(asked) == 15
    index.check_invariants()


def test_least_recently_sent_blocks_are_forgotten_the_deepest_first() -> None:
    index = PrefixIndex()
    index.note("a", hashes("abcdef"), 8)
    index.note("a", hashes("xyz1"), 8)
    assert index.num_held("a", hashes("abcdef")) == 4
    assert index.num_held("a", hashes("xyz1")) == 4
    index.note("a", hashes("abcdef"), 8)
    assert index.num_held("a", hashes("xyz1")) == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.text("xy", max_size=6)), max_size=20), st.integers(1, 8))
def test_a_replica_holds_whole_prefixes_and_never_more_than_its_blocks(
    sent: list[tuple[str, str]], blocks: int
) -> None:
    index = PrefixIndex()
    for name, text in sent:
        index.note(name, hashes(text), blocks)
        index.check_invariants()
        for other in "ab":
            held = index.held(other)
            assert len(held) <= blocks
            assert all(block[:-1] in held for block in held if len(block) > 1), "a block without the one before it"
        assert index.num_held(name, hashes(text)) == min(blocks, len(text))
