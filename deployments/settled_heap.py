"""What a serving process has built when it begins to serve stays to its end: garbage collection need not look at it."""

import gc

_YOUNG = 10_000  #: new objects between two collections of the youngest: a millisecond or two each


def settle_heap() -> None:
    """Call once everything is loaded. Else each full collection walks through all of Ray and the tokenizer, a tenth of
    a second in which no token moves (docs/benchmarks.md, "Garbage collection")."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 10, 10)
