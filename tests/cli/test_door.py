"""The `metricjax` console script: commands, help, version, and import time."""

import importlib.metadata
import subprocess
import sys

import pytest

import metricjax
from metricjax import __main__ as door
from metricjax import doctor
from metricjax import main as main_module

MODES = ("train", "plan", "folds", "compare")
# Slow imports that printing a help text must not need.
HEAVY = {"jax", "flax", "numpy", "ml_collections", "PIL", "orbax"}


def test_the_installed_command_is_the_door():
    (entry,) = (
        entry
        for entry in importlib.metadata.entry_points(group="console_scripts")
        if entry.name == "metricjax"
    )
    assert entry.load() is door.main


@pytest.mark.parametrize("command", door.COMMANDS)
def test_help_of_each_command_has_examples(command, capsys):
    assert door.main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"metricjax {command}: ")
    assert f"\n  metricjax {command}" in said
    assert "\nExamples:\n" in said and "Exit code: 0" in said
    assert max(map(len, said.splitlines())) <= 88


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_the_overview_names_every_command(arguments, capsys):
    assert door.main(arguments) == (0 if arguments else 2)
    said = capsys.readouterr().out
    for command in door.COMMANDS:
        assert f"\n  {command} " in said


@pytest.mark.parametrize("command", [None, *door.COMMANDS])
def test_version(command, capsys):
    assert door.main([*filter(None, [command]), "--version"]) == 0
    assert capsys.readouterr().out == f"metricjax {metricjax.__version__}\n"


def test_the_version_stands_in_one_place():
    assert importlib.metadata.version("metricjax") == metricjax.__version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["trian", "--config", "x.py"],
            "no command 'trian' (did you mean 'train'?)",
        ),
        (["photos.zip"], "no command 'photos.zip'"),
        (["--config", "x.py"], "write metricjax train --config ..."),
        (["--config.steps=2"], "write metricjax train --config.steps ..."),
        (["--mode", "plan", "--config", "x.py"], "write metricjax train --mode ..."),
        (["--gallery=x"], "write metricjax COMMAND --gallery ..."),
        (["plan", "--config", "x.py", "--mode", "train"], "plan takes no --mode"),
        (["folds", "--mode=plan"], "folds takes no --mode"),
        (["check"], None),
        (["check", "--verify", "x"], "two commands"),
    ],
)
def test_mistakes_at_the_door(arguments, words, capsys):
    assert door.main(arguments) == 2
    out, err = capsys.readouterr()
    if words is None:
        assert out.startswith("metricjax check: ") and err == ""
    else:
        assert err.startswith("metricjax: ") and err.count("\n") == 1
        assert words in err and out == ""


@pytest.mark.parametrize("command", MODES)
def test_a_mode_is_a_command(command, monkeypatch):
    """`metricjax plan ...` asks for what `--mode plan` asks for."""
    seen = []

    def parse(arguments):
        seen.append(arguments)
        raise main_module.InputError("seen")

    monkeypatch.setattr("metricjax.cli.config_flags.parse", parse)
    assert door.main([command, "--config", "x.py"]) == 2
    assert main_module.main(["--config", "x.py", "--mode", command]) == 2
    flags = [] if command == "train" else ["--mode", command]
    assert seen[0] == [*flags, "--config", "x.py"]
    assert sorted(seen[1]) == sorted(["--mode", command, "--config", "x.py"])


@pytest.mark.parametrize("module", [main_module, doctor])
def test_ctrl_c_is_raised(module, monkeypatch):
    """Training handles Ctrl-C itself; what remains is raised with its traceback."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.main(["--workdir", "x"])


def test_python_m_metricjax_is_the_console_script():
    results = [
        subprocess.run(
            [sys.executable, "-m", "metricjax", *arguments],
            capture_output=True,
            text=True,
        )
        for arguments in (["--version"], ["trian"])
    ]
    assert [result.returncode for result in results] == [0, 2]
    assert results[0].stdout == f"metricjax {metricjax.__version__}\n"
    assert results[1].stderr.startswith("metricjax: there is no command 'trian'")


def test_check_is_prepare_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    codes = [
        door.main(["check", "no.zip"]),
        door.main(["prepare", "--check", "no.zip"]),
    ]
    first, second = capsys.readouterr().err.splitlines()
    assert codes == [2, 2] and first == second and "no.zip" in first


def loaded_by(program):
    """The top-level modules that a program has imported."""
    program += "\nprint(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return set(result.stderr.split())


def test_importing_the_package_loads_nothing_else():
    assert not loaded_by("import sys, metricjax") & HEAVY


def test_packages_are_imported_when_they_are_used():
    program = (
        "import sys, metricjax\n"
        "assert {'losses', 'models', 'data', 'evaluation'} <= set(dir(metricjax))\n"
        "assert callable(metricjax.losses.triplet)\n"
        "assert callable(metricjax.data.open_dataset)"
    )
    assert {"jax", "numpy"} <= loaded_by(program)
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = metricjax.nothing


def test_texts_are_printed_without_loading_jax():
    program = (
        "import sys\n"
        "from metricjax.__main__ import COMMANDS, main\n"
        "for command in COMMANDS:\n"
        "    main([command, '--help']), main([command, '--version'])\n"
        "main(['--help'])"
    )
    assert not loaded_by(program) & HEAVY
