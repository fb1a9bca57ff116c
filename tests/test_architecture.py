"""The house rules that a machine can check: sizes, who imports whom, what survives pickling, one root, true docs."""

import ast
import importlib
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.generate_docs import render_pages

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cluster", "deployments", "engine", "parallel")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_CONSTRUCTOR_PARAMETERS = 7

#: What cluster may know of an engine: its messages, its settings, its errors, its names for blocks.
ENGINE_SEEN_BY_CLUSTER = {"engine.request", "engine.config", "engine.errors", "engine.block_hash", "engine.framing"}

#: "file:function" -> why it may be longer than the limit.
LONG_FUNCTIONS: dict[str, str] = {
    "cluster/gateway/endpoints.py:list_endpoints": "the table of the API: one entry a path, no control flow",
}
#: "file:class" -> why its constructor may take more parameters than the limit.
WIDE_CONSTRUCTORS: dict[str, str] = {}

VAGUE_NAMES = {"utils", "util", "common", "misc", "impl", "helpers", "types", "core_utils"}


def source_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring and decorators."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_files_stay_readable() -> None:
    long = {
        relative(path): lines
        for path in source_files(*PACKAGES, "scripts", "tests")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert not long, f"split these files (limit {MAX_FILE_LINES} lines): {long}"


def test_functions_stay_readable() -> None:
    long = {
        f"{relative(path)}:{function.name}": lines
        for path in source_files(*PACKAGES, "scripts")
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
        if (lines := function_lines(function)) > MAX_FUNCTION_LINES
    }
    unexplained = {name: lines for name, lines in long.items() if name not in LONG_FUNCTIONS}
    assert not unexplained, f"split these functions (limit {MAX_FUNCTION_LINES} lines): {unexplained}"
    assert not LONG_FUNCTIONS.keys() - long.keys(), "these are short now: take them off the list"


def test_constructors_stay_narrow() -> None:
    wide = {
        f"{relative(path)}:{node.name}": width
        for path in source_files(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        for function in node.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
        if (width := len(function.args.args) - 1 + len(function.args.kwonlyargs)) > MAX_CONSTRUCTOR_PARAMETERS
    }
    unexplained = {name: width for name, width in wide.items() if name not in WIDE_CONSTRUCTORS}
    assert not unexplained, f"group these parameters (limit {MAX_CONSTRUCTOR_PARAMETERS}): {unexplained}"
    assert not WIDE_CONSTRUCTORS.keys() - wide.keys(), "these are narrow now: take them off the list"


def test_names_say_what_is_inside() -> None:
    vague = [relative(path) for path in source_files(*PACKAGES, "scripts", "tests") if path.stem in VAGUE_NAMES]
    assert not vague, f"name these files after what they hold: {vague}"


@pytest.mark.parametrize("path", source_files(*PACKAGES), ids=relative)
def test_modules_say_what_they_own(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "begin the file with a docstring"
    if path.name == "__init__.py":
        assert len(tree.body) == 1, "an __init__.py holds a docstring and nothing else"


def test_packages_resolve_inside_one_root() -> None:
    """An unrelated distribution with the name of one of our packages would shadow or overwrite it."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        assert module.__file__ is not None
        assert Path(module.__file__).resolve() == ROOT / package / "__init__.py"
        assert (ROOT / package / "py.typed").exists()


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names if node.module in PACKAGES)
    return found - set(PACKAGES)


def test_cluster_sees_only_messages_settings_and_errors_of_an_engine() -> None:
    """import-linter keeps torch and Ray out; this names the few engine modules that may come in."""
    wrong = {
        relative(path): sorted(seen)
        for path in source_files("cluster")
        if (seen := {m for m in imported_modules(path) if m.startswith("engine.")} - ENGINE_SEEN_BY_CLUSTER)
    }
    assert not wrong


def serving_modules() -> list[str]:
    """Modules that run in the processes of gateways, routers and chain replicas, which must start without torch."""
    files = source_files("cluster") + [
        path
        for path in source_files("deployments")
        if path.name.startswith(("gateway", "router", "replica", "transport"))
        or path.stem in {"app", "cli", "local_cluster", "http_door", "leave", "take_leave", "termination"}
    ]
    return [relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in files]


def test_gateway_and_router_start_without_torch() -> None:
    """Torch costs 1.8 s and 218 MiB in each process that imports it."""
    program = (
        "import importlib, sys\n"
        f"for name in {serving_modules()!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def error_classes() -> list[type[Exception]]:
    names = ("engine.errors", "cluster.errors", "cluster.gateway.http_errors", "engine.framing", "parallel.layout")
    modules = [importlib.import_module(name) for name in names]
    return [
        member
        for module in modules
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Exception) and member.__module__ == module.__name__
    ]


@pytest.mark.parametrize("error_class", error_classes(), ids=lambda c: c.__qualname__)
def test_errors_survive_pickling(error_class: type[Exception]) -> None:
    """An error that does not hand all its arguments to its base arrives from a Ray actor as something else."""
    _, *parameters = inspect.signature(error_class.__init__).parameters.values()
    takes_anything = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    arguments = ["message"] if takes_anything else [f"value of {p.name}" for p in parameters]
    error = error_class(*arguments)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is error_class
    assert (again.args, vars(again), str(again)) == (error.args, vars(error), str(error))


def test_generated_pages_are_up_to_date() -> None:
    stale = [file.name for file, page in render_pages().items() if file.read_text(encoding="utf-8") != page]
    assert not stale, "run: .venv/bin/python -m scripts.generate_docs"


@pytest.mark.parametrize(
    "page", ["README.md", "ARCHITECTURE.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = {match.split("#")[0] for match in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", text)} - {""}
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]
    assert not missing


def test_files_that_architecture_names_exist() -> None:
    """ARCHITECTURE.md writes files of the house as `folder/file.py`."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:cluster|deployments|engine|parallel|scripts|tests|docs)/[\w./-]+)`", text))
    assert named, "the page names files"
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]
