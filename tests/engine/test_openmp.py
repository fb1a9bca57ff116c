"""The wait policy reaches OpenMP, and an environment that has chosen is left alone."""

import subprocess
import sys

from engine.openmp import wait_asleep


def test_a_choice_is_left_alone() -> None:
    for chosen in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}):
        environment = dict(chosen)
        wait_asleep(environment)
        assert environment == chosen
    environment = {}
    wait_asleep(environment)
    assert environment == {"OMP_WAIT_POLICY": "passive"}


def test_openmp_reads_it_when_torch_is_imported_afterwards() -> None:
    script = "from engine.openmp import wait_asleep\nassert wait_asleep()\nimport torch\nassert not wait_asleep()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"OMP_DISPLAY_ENV": "TRUE", "PATH": "", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
