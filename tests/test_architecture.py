"""The house: which package imports which, how long files and functions are."""

import ast
import subprocess
import sys

import pytest
from importlinter import cli
from paths import ROOT

SOURCES = sorted((ROOT / "metricjax").rglob("*.py"))


def test_packages_import_as_the_contracts_say(capsys):
    """The contracts stand in pyproject.toml; `lint-imports` shows the same."""
    code = cli.lint_imports(str(ROOT / "pyproject.toml"), no_cache=True)
    assert code == 0, capsys.readouterr().out


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
