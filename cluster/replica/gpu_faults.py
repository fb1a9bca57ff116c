"""Which of a GPU's complaints mean that the device is of no more use, and which only that a program did wrong."""

#: XID errors that programs cause; NVIDIA's device plugin for Kubernetes leaves a device in service after these.
PROGRAM_XIDS = frozenset({13, 31, 43, 45, 68, 109})
STALE_S = 10.0  #: what was read longer ago says nothing: the library hangs


def fault_of_xid(xid: int) -> str:
    """Empty where the device is not to blame."""
    return "" if xid in PROGRAM_XIDS else f"XID {xid}"


def fault_of_ecc(num_at_start: int | None, num_now: int | None) -> str:
    """Uncorrected memory errors since the replica began; None: the device does not count them."""
    if num_at_start is None or num_now is None or num_now <= num_at_start:
        return ""
    return f"{num_now - num_at_start} uncorrected ECC errors"
