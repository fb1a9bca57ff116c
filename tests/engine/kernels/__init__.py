"""Tests of the CPU kernels."""
