"""The examples of docs/ are run as they stand, against a live server; answers have the shape that the pages show."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.doc_examples import Example, find_examples
from tests.e2e.live_server import LiveServer

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = [example for page in ("api.md", "quickstart.md") for example in find_examples(ROOT / "docs" / page)]


def run_example(example: Example, server: LiveServer) -> subprocess.CompletedProcess[str]:
    interpreter = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable]}[example.language]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # as docs/api.md tells programs that join the cluster of `manta serve` from outside
    joining = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_ADDRESS": server.ray_address}
    environment = {**os.environ, "PATH": path, **joining}
    return subprocess.run(
        interpreter,
        input=example.code_for(server.url, server.model),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.ray
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_example(example: Example, live_server: LiveServer) -> None:
    done = run_example(example, live_server)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.strip(), "an example shows something"
    if example.answer is not None:
        assert_same_shape(json.loads(done.stdout), json.loads(example.answer), "answer")
    elif '"stream": true' in example.code:
        events = [line for line in done.stdout.splitlines() if line.startswith("data: ")]
        assert events[-1] == "data: [DONE]"
        assert all("error" not in json.loads(event.removeprefix("data: ")) for event in events[:-1])


def assert_same_shape(real: Any, documented: Any, where: str) -> None:
    """The same keys and types, whatever the values; a documented error has the very words of the real one."""
    if isinstance(documented, dict):
        assert isinstance(real, dict), where
        assert list(real) == list(documented), f"{where}: fields and their order"
        for key, value in documented.items():
            assert_same_shape(real[key], value, f"{where}.{key}")
            if where == "answer.error":
                assert real[key] == value
    elif isinstance(documented, list):
        assert isinstance(real, list) and real, where
        assert_same_shape(real[0], documented[0], f"{where}[0]")
    elif documented is not None:
        assert type(real) is type(documented), f"{where} is {real!r}"


def test_the_pages_have_examples_of_every_endpoint() -> None:
    code = "\n".join(example.code for example in EXAMPLES)
    for path in ("chat/completions", "completions", "models", "tokenize", "detokenize"):
        assert f"/v1/{path}" in code
    for call in ("generate.remote", "chat.remote", "stream.remote", "manta chat", "manta config", "manta doctor"):
        assert call in code


def test_server_and_model_are_put_in() -> None:
    example = Example("page", 1, "bash", 'curl http://127.0.0.1:8000/x -d \'{"model": "demo", "text": "demo!"}\'')
    assert example.code_for("http://h:1", "m") == 'curl http://h:1/x -d \'{"model": "m", "text": "demo!"}\''
