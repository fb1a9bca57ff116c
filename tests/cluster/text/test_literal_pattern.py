"""One pattern for many texts finds what looking for each of them finds."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.text.literal_pattern import any_of

word = st.text(alphabet="ab|<", min_size=1, max_size=4)


@given(st.lists(word, max_size=6), st.text(alphabet="ab|<c", max_size=30))
def test_it_finds_the_longest_at_each_place(texts: list[str], where: str) -> None:
    expected, at = [], 0
    while at < len(where):
        longest = max((text for text in texts if where.startswith(text, at)), key=len, default="")
        if longest:
            expected.append(longest)
        at += len(longest) or 1
    assert any_of(texts).findall(where) == expected


def test_nothing_is_found_where_there_is_nothing_to_find() -> None:
    assert any_of([]).search("anything") is None
