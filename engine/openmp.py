"""How OpenMP's threads wait for each other: awake for a moment, then asleep. `wait_briefly` goes before torch's import.

A decode step is some sixty short parallel regions with a little Python between them. A thread that goes to sleep at
once has to be woken sixty times; one that stays awake for long sits on the very core that the thread it waits for may
need. Decode step of a 58M model on two cores, 1 / 16 sequences, in ms:

    iterations awake             idle machine     a process computing on both cores beside it
    0 (OMP_WAIT_POLICY=passive)   7.5 / 12.3           9.3 / 13.8
    3,000                         5.5 /  8.9          13.7 / 17.6
    10,000                        4.6 /  7.0          23.3 / 27.3
    50,000                        4.4 /  6.8          68.3 / 74.2
    libgomp's own choice          4.2 /  6.6          40 to 100
"""

import os
import sys
from collections.abc import MutableMapping

WAIT_POLICY_VARIABLE = "OMP_WAIT_POLICY"
SPIN_VARIABLE = "GOMP_SPINCOUNT"
SPIN_COUNT = 10_000  #: most of the speed of an idle machine, and bounded harm on a busy one


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Choose for this process, unless its environment has chosen; False where it is too late for that."""
    if WAIT_POLICY_VARIABLE not in environment and SPIN_VARIABLE not in environment:
        environment[SPIN_VARIABLE] = str(SPIN_COUNT)
    return "torch" not in sys.modules
