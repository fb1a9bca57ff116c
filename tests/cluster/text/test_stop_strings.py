"""Stop strings: no part of one is ever given out, and the pieces in which text comes make no difference."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.text.stop_strings import StopStrings

short_text = st.text(alphabet="abc", max_size=12)
stops_strategy = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4)


def run(pieces: list[str], stops: list[str]) -> tuple[str, str | None, list[str]]:
    watch = StopStrings(stops)
    given_out: list[str] = []
    for piece in pieces:
        given_out.append(watch.feed(piece))
        if watch.found is not None:
            return "".join(given_out), watch.found, given_out
    given_out.append(watch.flush())
    return "".join(given_out), None, given_out


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """By the definition: the first end of any stop string, of those that end there the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(short_text, max_size=6), stops_strategy)
def test_the_pieces_make_no_difference(pieces: list[str], stops: list[str]) -> None:
    text, found, _ = run(pieces, stops)
    assert (text, found) == expected("".join(pieces), stops)


@given(short_text, stops_strategy)
def test_single_characters_never_leak_a_stop(text: str, stops: list[str]) -> None:
    out, found, given_out = run(list(text), stops)
    assert (out, found) == expected(text, stops)
    assert all(stop not in "".join(given_out[:count]) for stop in stops for count in range(len(given_out) + 1))


def test_text_that_cannot_become_a_stop_is_given_out_at_once() -> None:
    watch = StopStrings(["END"])
    assert watch.feed("hello ") == "hello "
    assert watch.feed("E") == ""
    assert watch.feed("x") == "Ex"
    assert watch.feed("EN") == ""
    assert watch.flush() == "EN"


def test_text_before_the_least_length_is_not_watched() -> None:
    watch = StopStrings(["ab"])
    assert watch.pass_by("ab") == "ab"
    assert watch.found is None
    assert watch.feed("xab") == "x"
    assert watch.found == "ab"
