"""The house: which package imports which, how long files and functions are."""

import ast
import subprocess
import sys

import pytest
from paths import ROOT

SOURCES = sorted((ROOT / "metricjax").rglob("*.py"))


# Of import-linter's command line, in a process of its own: it takes over the console.
LINT = """
import sys
from importlinter import cli
sys.exit(cli.lint_imports(no_cache=True))
"""


def test_packages_import_as_the_contracts_say():
    """The contracts stand in pyproject.toml; `lint-imports` shows the same."""
    result = subprocess.run(
        [sys.executable, "-c", LINT], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Packages import downwards only KEPT" in result.stdout


def test_private_parts_of_jax_are_imported_in_one_file():
    found = [
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if any("jax._src" in name for name in _imports(path))
    ]
    assert found == ["metricjax/runtime/_jax_internals.py"]


def _imports(path) -> list[str]:
    """The modules that a file imports, at its top or in a function."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


@pytest.mark.parametrize("package", ["losses", "models", "data", "evaluation"])
def test_a_package_can_be_used_alone(package):
    """Importing it loads no other of ours but `errors` and what lies under it."""
    program = (
        f"import metricjax.{package}, sys\n"
        "print(*{m.split('.')[1] for m in sys.modules if m.startswith('metricjax.')})"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert set(out.split()) <= {package, "errors", "storage"}


def test_files_and_functions_fit_on_a_screen():
    """350 lines a file, 60 a function without its docstring: more is two things."""
    long = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        if (lines := text.count("\n")) > 350:
            long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1 - _docstring_lines(node)
                if lines > 60:
                    long.append(f"{name}:{node.lineno} {node.name}: {lines} lines")
    assert long == []


def _docstring_lines(node) -> int:
    first = node.body[0]
    has = ast.get_docstring(node) is not None
    return first.end_lineno - first.lineno + 1 if has else 0
