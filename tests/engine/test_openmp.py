"""The waiting time reaches OpenMP, and an environment that has chosen is left alone."""

import subprocess
import sys

from engine.openmp import wait_briefly


def test_a_choice_is_left_alone() -> None:
    for chosen in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}):
        environment = dict(chosen)
        wait_briefly(environment)
        assert environment == chosen
    environment = {}
    wait_briefly(environment)
    assert environment == {"GOMP_SPINCOUNT": "10000"}


def test_openmp_reads_it_when_torch_is_imported_afterwards() -> None:
    script = "from engine.openmp import wait_briefly\nassert wait_briefly()\nimport torch\nassert not wait_briefly()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"OMP_DISPLAY_ENV": "verbose", "PATH": "", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "GOMP_SPINCOUNT = '10000'" in done.stderr
