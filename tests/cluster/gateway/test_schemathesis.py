"""Requests that schemathesis makes of the OpenAPI document: no answer is the server's fault, and all are as it says.

For long runs against a server: docs/security.md.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.gateway_world import MODEL, client, live_server, local_generator
from tests.cluster.resume_world import Shard, a_gateway

#: Not `positive_data_acceptance`: a body can fit its types and yet ask for more than a model or a context has.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,negative_data_rejection,unsupported_method,allow_header_conformance"
)
ALIASES = "^/(de)?tokenize$|/versions/"  #: the same endpoints by other names


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the model's name in place of any text: else few requests get beyond a 404."""
    names = {"type": "string", "enum": [MODEL, "nothing"]}
    for schema in document["components"]["schemas"].values():
        if schema.get("properties", {}).get("model", {}).get("type") == "string":
            schema["properties"]["model"] = names
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "model":
                    parameter["schema"] = names
    return document


@pytest.mark.timeout(300)
async def test_every_answer_is_as_the_document_says(tmp_path: Path) -> None:
    async with local_generator() as generator:
        app = a_gateway("g", generator, Shard()).app
        async with client(app) as http:
            document = narrowed((await http.get("/openapi.json")).json())
        path = tmp_path / "openapi.json"
        path.write_text(json.dumps(document))
        async with live_server(app) as address:
            command = (
                "run", str(path), "--url", address, "--checks", CHECKS, "--phases", "coverage",
                "--exclude-path-regex", ALIASES,
                "--generation-deterministic", "--no-shrink", "--continue-on-failure", "--warnings", "off",
            )  # fmt: skip
            process = await asyncio.create_subprocess_exec(
                Path(sys.executable).with_name("schemathesis"),
                *command,
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said[-20_000:]
