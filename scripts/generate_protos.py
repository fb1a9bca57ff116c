"""`python -m scripts.generate_protos`: the Python modules of `cluster/protocols/proto/*.proto`. Needs grpcio-tools."""

import importlib.resources
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = Path("cluster/protocols/proto")


def render_protos() -> dict[Path, str]:
    """What each module should hold, by its path in the repository."""
    from grpc_tools import protoc

    includes = importlib.resources.files("grpc_tools") / "_proto"
    protos = sorted(path.relative_to(ROOT) for path in (ROOT / FOLDER).glob("*.proto"))
    with tempfile.TemporaryDirectory() as out:
        failed = protoc.main(["protoc", f"-I{ROOT}", f"-I{includes}", f"--python_out={out}", *map(str, protos)])
        if failed:
            raise SystemExit(failed)
        return {path.relative_to(out): path.read_text() for path in sorted(Path(out).rglob("*_pb2.py"))}


def main() -> int:
    for path, text in render_protos().items():
        (ROOT / path).write_text(text)
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
