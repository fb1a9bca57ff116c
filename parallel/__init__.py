"""Ranks: the grid of tensor and pipeline parallel processes, and the cores they own."""
