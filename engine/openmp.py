"""How OpenMP's threads wait for each other: asleep. Call `wait_asleep` before torch is imported.

A decode step is some sixty short parallel regions. By default a thread spins at the end of each, on the very core that
the thread it waits for may need: beside a gateway, or anything else that runs on the host, steps then take many times
as long (a decode step of a 58M model on two busy cores: 9 ms asleep, 40 to 100 ms spinning).
"""

import os
import sys
from collections.abc import MutableMapping

WAIT_POLICY_VARIABLE = "OMP_WAIT_POLICY"
_SPIN_VARIABLE = "GOMP_SPINCOUNT"


def wait_asleep(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Choose the policy for this process, unless its environment has chosen; False where it is too late for that."""
    if WAIT_POLICY_VARIABLE not in environment and _SPIN_VARIABLE not in environment:
        environment[WAIT_POLICY_VARIABLE] = "passive"
    return "torch" not in sys.modules
