"""The queue in front of the replicas: what a router shard holds, in which order it grants, whom it refuses."""
