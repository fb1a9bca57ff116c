"""Serving decisions over many replicas: gateway, queue shard, router; never sees a tensor or Ray."""
