"""Which replica is meant."""

import pickle

import pytest

from deployments.commands.drain import NoSuchReplica, find_replica

REPLICAS = [{"replica_id": "abc1"}, {"replica_id": "abd2"}, {"replica_id": "abc"}]


@pytest.mark.parametrize(("name", "found"), [("abd2", "abd2"), ("abd", "abd2"), ("abc", "abc"), ("abc1", "abc1")])
def test_an_id_or_the_only_one_that_begins_so(name: str, found: str) -> None:
    assert find_replica(name, REPLICAS) == found


@pytest.mark.parametrize(("name", "words"), [("x", "no replica has this id"), ("ab", "several.*: abc, abc1, abd2")])
def test_others_are_refused(name: str, words: str) -> None:
    with pytest.raises(NoSuchReplica, match=words) as caught:
        find_replica(name, REPLICAS)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
