"""The HTTP side: one ASGI app of layers and endpoints, event streams, the listener."""
