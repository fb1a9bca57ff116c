"""SIGTERM asks once and ends the process the second time, whatever its main thread does."""

import signal
import subprocess
import sys

from deployments.termination import EXIT_CODE

PROGRAM = """
import threading, time
from deployments.termination import on_sigterm
threading.Thread(target=lambda: (on_sigterm(lambda: print("asked", flush=True)), print("ready", flush=True))).start()
time.sleep(60)
"""


def test_the_first_asks_the_second_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == EXIT_CODE
