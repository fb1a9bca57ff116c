"""A gateway's requests: their journals, where they run, and how they go on when a replica, shard or gateway is lost."""
