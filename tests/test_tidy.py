"""The repository polices its own habits; each rule says what to do instead."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from protocols.message import Request
from protocols.registry import MESSAGE_KINDS

ROOT = Path(__file__).parent.parent
PRODUCT = sorted(
    path for folder in ("protocols", "services", "deploy") for path in (ROOT / folder).rglob("*.py")
)
TEXT = sorted(
    path
    for pattern in ("*.py", "*.md", "*.toml", "*.cfg", "Makefile", "run")
    for path in ROOT.rglob(pattern)
    if not {".venv", ".git", ".browser", "build", "data"} & set(path.relative_to(ROOT).parts[:-1])
)
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70


def name(path):
    return str(path.relative_to(ROOT))


def module(path):
    return name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.fixture(scope="module")
def trees():
    return {path: ast.parse(path.read_text()) for path in PRODUCT}


def functions(tree):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def test_every_module_says_what_it_is_for(trees):
    assert [name(path) for path, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_files_answer_one_question(trees):
    sizes = {name(path): len(path.read_text().splitlines()) for path in trees}
    assert {path: nr for path, nr in sizes.items() if nr > FILE_LINES_MAX} == {}


def test_functions_fit_a_screen(trees):
    long = {
        f"{name(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path, tree in trees.items()
        for node in functions(tree)
        if node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert long == {}


def test_services_open_no_file_and_print_nothing(trees):
    found = [
        f"{name(path)}:{node.lineno} {node.func.id}"
        for path, tree in trees.items()
        if name(path).startswith("services/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"open", "print", "input", "exec", "eval", "hash", "id"}
    ]
    assert found == []


def test_nothing_is_left_for_later():
    words = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "X" * 3 + r"\b", "HA" + "CK"]))
    assert [name(path) for path in TEXT if words.search(path.read_text())] == []


def test_no_path_of_a_machine_and_no_registry_is_named():
    machine = re.compile(r"/(work|root|home|Users)/\w|pypi\.org|registry\.npmjs|deb\.debian")
    assert [name(path) for path in TEXT if machine.search(path.read_text())] == []


def test_every_module_is_used(trees):
    imported = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module)
                imported.update(f"{node.module}.{alias.name}" for alias in node.names)
    pyproject, makefile = (ROOT / "pyproject.toml").read_text(), (ROOT / "Makefile").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    unused = [
        name(path)
        for path in trees
        if path.name != "__init__.py"
        and module(path) not in imported
        and module(path) not in pyproject
        and module(path) not in makefile
        and not name(path).startswith("deploy/zoo/")  # found by walking the folder
        and not (name(path).startswith("services/spec/") and module(path) in tests)
    ]
    assert unused == []


def test_every_request_has_one_handler(trees):
    handled = [
        decorator.args[0].id
        for path, tree in trees.items()
        if name(path).startswith("services/")
        for node in functions(tree)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "handles"
    ]
    requests = {kind.__name__ for kind in MESSAGE_KINDS.values() if issubclass(kind, Request)}
    assert sorted(handled) == sorted(requests)


def test_dependencies_are_explained():
    explained = (ROOT / "docs" / "dependencies.md").read_text()
    wanted = re.findall(
        r'^    "([a-z-]+)[>\[]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert wanted
    assert [package for package in wanted if package not in explained] == []


def test_the_protocol_document_is_what_the_messages_say():
    path = ROOT / "docs" / "make_protocol.py"
    spec = importlib.util.spec_from_file_location("make_protocol", path)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert (ROOT / "docs" / "protocol.md").read_text() == maker.document()
