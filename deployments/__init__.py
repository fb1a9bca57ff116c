"""The shells: Ray Serve deployments, actors and sockets around the plain classes; decides nothing."""
