"""Discrete-event simulation of a cluster around the real router and scheduler. No Ray, no sockets, no clock."""
