"""Metrics: what is counted, where, and how all processes' numbers become one page for Prometheus."""
