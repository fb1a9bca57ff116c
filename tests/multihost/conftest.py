"""Three hosts, launched once for all tests; afterwards nothing of Ray is left on them."""

from collections.abc import Iterator

import pytest

from cluster.client import KEY_VARIABLE
from tests.multihost.launched_cluster import LaunchedCluster
from tests.multihost.netns_cluster import netns_hosts

NUM_HOSTS = 3


@pytest.fixture(scope="package")
def launched() -> Iterator[LaunchedCluster]:
    with netns_hosts(NUM_HOSTS) as hosts, pytest.MonkeyPatch.context() as environment:
        environment.setenv(KEY_VARIABLE, hosts.make_api_key())
        cluster = LaunchedCluster(hosts, hosts.cluster_file())
        cluster.tell("three hosts")
        cluster.up()
        cluster.tell("manta up is done")
        yield cluster
        assert cluster.manta("down", str(cluster.file)) == 0
        cluster.tell("manta down is done")
        for number in range(1, NUM_HOSTS + 1):
            left = hosts.tool("exec", str(number), "ps", "-eo", "args")
            assert not [name for name in ("raylet", "gcs_server", "rank_process") if name in left], f"{number}: {left}"
