"""What strangers' bytes are tried on: a few in the test command, a million by `python -m scripts.fuzz`."""
