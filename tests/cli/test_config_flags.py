"""The command line: flags, overrides, and every mistake in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from paths import CONFIGS

from metricjax.cli import config_flags
from metricjax.main import main

CONFIG = """\
from metricjax.config import choose_variant, default_config, terms


def get_config(variant="small"):
    choose_variant("letters", variant, ("small", "large"))
    config = default_config()
    config.steps = {"small": 10, "large": 20}[variant]
    config.objective.terms = terms(triplet={"margin": 0.1}, softmax={})
    return config
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, where importing a config leaves no bytecode."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture
def config_file(here):
    """A config with two variants, in the working directory."""
    path = Path("letters.py")
    path.write_text(CONFIG)
    return str(path)


def write(name, *lines):
    Path(name).write_text("\n".join(lines) + "\n")
    return name


def refuse(capsys, *arguments):
    """The one sentence on stderr of a command line that is refused."""
    before = sorted(Path().rglob("*"))
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("metricjax: ") and err.endswith(".\n")
    assert err.count("\n") == 1 and "Traceback" not in err
    assert sorted(Path().rglob("*")) == before
    return err


def parse(config_file, *overrides):
    arguments = [f"--config.{override}" for override in overrides]
    return config_flags.parse(["--config", config_file, *arguments]).config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("steps=7", 7),
        ("seed=0", 0),
        ("optimizer.learning_rate=3e-4", 3e-4),
        ("optimizer.learning_rate=1", 1.0),
        ("data.name=folder", "folder"),
        ("data.name=a=b", "a=b"),
        ("data.closed_set=true", True),
        ("data.closed_set=False", False),
        ("data.closed_set=1", True),
        ("data.root=photos.zip", "photos.zip"),
        ("data.root=None", None),
        ("data.threads=3", 3),
        ("data.threads=None", None),
        ("data.transform.flip=no", False),
        ("optimizer.clip_norm=0.5", 0.5),
        ("objective.block_size=16", 16),
        ("model.widths=(8,16)", (8, 16)),
        ("model.widths=[8, 16]", (8, 16)),
        ("model.widths=8,16", (8, 16)),
        ("model.widths=8", (8,)),
        ("optimizer.step_boundaries=(3,5)", (3, 5)),
        ("evaluation.recall_at=(1,10)", (1, 10)),
        ("plan.topology=v5e:16x16", "v5e:16x16"),
    ],
)
def test_overrides_of_every_type(config_file, override, value):
    found = parse(config_file, override)
    for name in override.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_overrides_of_a_loss(config_file):
    config = parse(
        config_file,
        "objective.terms.triplet.margin=0.3",
        "objective.terms.triplet.squared=yes",
        "objective.terms.softmax.weight=0.5",
    )
    triplet, softmax = (
        config.objective.terms["triplet"],
        config.objective.terms["softmax"],
    )
    assert triplet.options["margin"] == 0.3 and triplet.options["squared"] is True
    assert softmax.weight == 0.5


def test_variants_names_and_workdirs(config_file):
    options = config_flags.parse(["--config", config_file])
    assert (options.config.steps, options.name) == (10, "letters")
    assert options.workdir == Path("runs/letters") and not options.print_config
    options = config_flags.parse(["--config", f"{config_file}:large", "--workdir", "x"])
    assert (options.config.steps, options.name) == (20, "letters-large")
    assert options.workdir == Path("x")


def test_order_and_spelling_of_flags_do_not_matter(config_file):
    arguments = ["--config.seed", "3", f"--config={config_file}", "--config.steps=4"]
    options = config_flags.parse([*arguments, "--workdir=w"])
    assert (options.config.seed, options.config.steps) == (3, 4)
    assert options.workdir == Path("w")
    overridden = config_flags.parse(
        ["--config.steps=4", "--config", f"{config_file}:large", "--config.steps=5"]
    )
    assert overridden.config.steps == 5


def test_modes(config_file, capsys):
    arguments = ["--config", config_file]
    assert config_flags.parse(arguments).mode == "train"
    assert config_flags.parse([*arguments, "--mode", "plan"]).mode == "plan"
    assert config_flags.parse(["--mode=train", *arguments]).mode == "train"
    message = refuse(capsys, *arguments, "--mode=pln")
    assert "--mode is 'pln'" in message and "did you mean 'plan'" in message
    assert "choose train, plan, folds or compare" in message
    assert "'--mdoe'" in refuse(capsys, *arguments, "--mdoe=plan")


def test_print_config_shows_the_settings_and_does_nothing(config_file, capsys):
    arguments = ["--config", config_file, "--print_config", "--config.steps=123"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "steps: 123" in out and "learning_rate: 0.0001" in out and err == ""
    assert list(Path().iterdir()) == [Path(config_file)]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["stesp=5"], ["--config.stesp", "did you mean 'steps'", "batch_size"]),
        (["data.rooot=x"], ["--config.data.rooot", "did you mean 'root'"]),
        (["dta.root=x"], ["--config.dta.root", "did you mean 'data'"]),
        (["steps.x=5"], ["--config.steps.x is no setting"]),
        (["=5"], ["--config. is no setting", "batch_size"]),
        (
            ["objective.terms.triplet.margn=1"],
            ["--config.objective.terms.triplet.margn", "did you mean 'margin'"],
        ),
        (
            ["objective.terms.tripel.margin=1"],
            ["--config.objective.terms.tripel.margin", "did you mean 'triplet'"],
        ),
        (["steps=many"], ["--config.steps=many", "whole number"]),
        (["steps=1.5"], ["--config.steps=1.5", "whole number"]),
        (["steps=None"], ["--config.steps=None", "whole number"]),
        (["steps="], ["--config.steps=", "whole number"]),
        (["data.threads=two"], ["--config.data.threads=two", "whole number"]),
        (["optimizer.learning_rate=fast"], ["learning_rate=fast", "a number"]),
        (["optimizer.clip_norm=x"], ["--config.optimizer.clip_norm=x", "a number"]),
        (["optimizer.learning_rate=nan"], ["learning_rate is nan", "finite"]),
        (["data.closed_set=maybe"], ["data.closed_set=maybe", "true or false"]),
        (["model.widths=wide"], ["--config.model.widths=wide", "(1,2,4)"]),
        (["model.widths=(8,'x')"], ["config.model.widths[1] is 'x'", "int"]),
        (["data=5"], ["--config.data is a group of settings", "root"]),
        (["data.transform=x"], ["--config.data.transform is a group", "recipe"]),
        (["steps"], ["--config.steps has no value", "--config.steps=VALUE"]),
        (["steps", "--workdir=x"], ["--config.steps has no value"]),
        (["batch_size=130"], ["config.batch_size is 130", "128"]),
        (["plan.topolgy=v5e:4x4"], ["--config.plan.topolgy", "did you mean"]),
        (["plan.utilization=40"], ["config.plan.utilization is 40", "at most 1"]),
        (["plan.utilization=0"], ["config.plan.utilization is 0", "above 0"]),
        (["plan.compiles=-1"], ["config.plan.compiles is -1", "0 or more"]),
    ],
)
def test_bad_overrides(config_file, capsys, override, words):
    message = refuse(
        capsys, "--config", config_file, f"--config.{override[0]}", *override[1:]
    )
    for word in words:
        assert word in message


def test_bad_flags(config_file, capsys):
    config = ["--config", config_file]
    message = refuse(capsys, *config, "--workdri=x")
    assert "'--workdri'" in message and "did you mean '--workdir'" in message
    assert "'--stepz'" in refuse(capsys, *config, "--stepz", "4")
    assert "'stray'" in refuse(capsys, *config, "stray")
    assert "--config" in refuse(capsys, "--workdir", "x")
    assert "--config" in refuse(capsys, "--config")
    assert "--workdir" in refuse(capsys, *config, "--workdir")
    assert f"--config {config_file}" in refuse(capsys, config_file)
    assert "--config" in refuse(capsys, "--config.steps=5")


def test_no_such_config_or_variant(config_file, capsys):
    message = refuse(capsys, "--config", "leters.py")
    assert "--config leters.py" in message and "no such file" in message
    assert "did you mean 'letters.py'" in message
    message = refuse(capsys, "--config", "elsewhere/letters.py")
    assert "--config elsewhere/letters.py" in message
    message = refuse(capsys, "--config", f"{config_file}:larg")
    assert "'larg'" in message and "did you mean 'large'" in message
    assert "small, large" in message
    assert "no such file" in refuse(capsys, "--config", ".")


def test_configs_that_are_none(capsys, here):
    def message(*lines, name="a.py", variant=""):
        return refuse(capsys, "--config", write(name, *lines) + variant)

    assert "*.py" in message("steps: 5", name="a.yaml")
    assert "line 2 is not Python" in message("x = 1", "def get_config(:", name="b.py")
    assert "no get_config()" in message("x = 1", name="c.py")
    assert "ConfigDict" in message("def get_config():", "    return {}", name="d.py")
    assert "line 2 raises ModuleNotFoundError" in message(
        "", "import no_such_module", name="e.py"
    )
    head = ("from metricjax.config import default_config", "def get_config():")
    body = ("    config = default_config()", "    config.steps = 'many'")
    wrong_type = message(*head, *body, "    return config", name="f.py")
    assert "line 4 raises TypeError" in wrong_type and "steps" in wrong_type
    nothing_to_minimise = message(*head, body[0], "    return config", name="g.py")
    assert "config.objective.terms is empty" in nothing_to_minimise
    no_variants = message(
        *head, body[0], "    return config", name="h.py", variant=":large"
    )
    assert "no variants" in no_variants and "'large'" in no_variants


def run_python(code, *arguments, cwd):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )


@pytest.mark.parametrize("flag", ["--help", "-h", "--config=x.py --help", ""])
def test_help_is_readable_and_imports_nothing_heavy(flag, tmp_path):
    code = (
        "import sys\n"
        "from metricjax.main import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'jax', 'flax', 'optax', 'numpy', 'matplotlib', 'orbax', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "sys.exit(code)"
    )
    result = run_python(code, *flag.split(), cwd=tmp_path)
    assert result.stderr == ""
    assert result.returncode == (0 if flag else 2)
    lines = result.stdout.splitlines()
    assert all(len(line) <= 88 for line in lines) and len(lines) < 50
    for word in (
        "--config",
        "--workdir",
        "--mode plan",
        "--config.KEY=VALUE",
        "Exit code",
    ):
        assert word in result.stdout


def test_the_module_is_a_program(tmp_path):
    command = [sys.executable, "-m", "metricjax.main"]
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 300}
    result = subprocess.run([*command, "--help"], **options)
    assert result.returncode == 0 and result.stdout.startswith("metricjax train: ")
    assert result.stderr == ""
    result = subprocess.run([*command, "--config", "no.py"], **options)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "metricjax: --config no.py: there is no such file.\n"


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("*.py")))
def test_the_configs_that_come_along(name):
    options = config_flags.parse(["--config", str(CONFIGS / name)])
    assert options.config.steps >= 100
    assert f"configs/{name}" in (CONFIGS / name).read_text()


@pytest.mark.parametrize(
    "loss", ["triplet", "n_pair", "lifted_structure", "multi_similarity"]
)
def test_every_loss_of_embedding_expansion_can_be_chosen(loss):
    """From the command line, in the config of its paper."""
    config = parse(
        str(CONFIGS / "ee_googlenet.py:cub"),
        f"objective.terms.ee_{loss}.weight=1",
        "objective.terms.ee_hphn_triplet.weight=0",
        "instances_per_class=2",
    )
    assert [name for name, *_ in config.objective.losses()] == [f"ee_{loss}"]
