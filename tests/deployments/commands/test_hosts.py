"""What `manta hosts` tells of ranks."""

from deployments.commands.hosts import ranks_by_host


def test_ranks_are_told_where_a_replica_has_several_hosts() -> None:
    spread = {"replica_id": "ab12", "rank_hosts": ["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2"]}
    together = {"replica_id": "cd34", "rank_hosts": ["10.0.0.1"] * 2}
    alone = {"replica_id": "ef56", "rank_hosts": []}
    assert ranks_by_host([spread, together, alone]) == {"10.0.0.1": {"ab12": [0, 1]}, "10.0.0.2": {"ab12": [2, 3]}}
