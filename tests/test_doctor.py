"""`python -m metricjax.doctor`: what it finds, what it says to do, what it leaves."""

import importlib.metadata
import os
import subprocess
import sys
import time

import jax
import pytest
from paths import LAUNCH

from metricjax import doctor
from metricjax.diagnostics import decoding_rate, device_checks, host_checks
from metricjax.diagnostics.host_checks import FAILED, OK, WARNING
from metricjax.runtime import exchange, mesh

LOCAL = LAUNCH / "local.sh"
CHECKS = ["versions", "hosts", "devices", "all-reduce", "compilation", "workdir"]
CHECKS += ["data", "decoding", "memory"]


@pytest.fixture
def brief(monkeypatch):
    """Measurements in a moment."""
    all_reduce, decoding = device_checks.all_reduce, decoding_rate.check
    monkeypatch.setattr(device_checks, "all_reduce", lambda: all_reduce(0.02))
    monkeypatch.setattr(decoding_rate, "check", lambda: decoding(0.02))


@pytest.fixture
def cache(monkeypatch):
    """Sets where compiled programs are kept."""
    before = jax.config.jax_compilation_cache_dir
    yield lambda path: jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_compilation_cache_dir", before)


def lines_of(text):
    """(status, check, sentence) of each line of a table."""
    return [line.strip().split(maxsplit=2) for line in text.splitlines()]


def test_a_line_a_check_and_nothing_left_behind(brief, cache, tmp_path, capsys):
    cache(str(tmp_path / "compiled"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"x")
    before = sorted(tmp_path.rglob("*"))
    workdir, data = tmp_path / "new" / "run", tmp_path / "photos"
    assert doctor.main(["--workdir", str(workdir), "--data", str(data)]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    found = lines_of(capsys.readouterr().out)
    assert [check for _, check, _ in found] == CHECKS
    verdicts = {check: status for status, check, _ in found}
    assert verdicts.pop("memory") in (OK, WARNING)
    assert verdicts.pop("workdir") in (OK, WARNING)
    assert set(verdicts.values()) == {OK}
    sentences = {check: sentence for _, check, sentence in found}
    assert f"jax {jax.__version__}, jaxlib " in sentences["versions"]
    assert sentences["devices"].startswith("8 x cpu")
    assert "over 8 devices" in sentences["all-reduce"]
    assert str(tmp_path / "compiled") in sentences["compilation"]


def test_what_fails_makes_the_exit_code(brief, tmp_path, capsys):
    missing = tmp_path / "missing"
    assert doctor.main(["--workdir", str(tmp_path), "--data", str(missing)]) == 2
    failed = [line for line in lines_of(capsys.readouterr().out) if line[0] == FAILED]
    assert [check for _, check, _ in failed] == ["data"]
    assert f"{missing} cannot be read (No such file" in failed[0][2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--wrkdir", "x"], "--wrkdir"), (["--workdir"], "--workdir"), (["x"], "x")],
)
def test_a_wrong_command_line(arguments, words, capsys):
    assert doctor.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and words in err and err.count("\n") == 1
    assert err.startswith("metricjax: ") and err.endswith("see --help.\n")


def test_hosts_that_are_named_by_halves(monkeypatch, capsys):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    assert doctor.main([]) == 2
    err = capsys.readouterr().err
    assert "JAX_NUM_PROCESSES is 'two': set it to a number" in err
    assert err.startswith("metricjax: ") and err.count("\n") == 1


def test_help(capsys):
    assert doctor.main(["--help"]) == 0
    assert capsys.readouterr().out == doctor.USAGE


def test_jax_that_cannot_be_imported_is_told(monkeypatch, capsys):
    # As if it were not there: the import raises.
    monkeypatch.setitem(sys.modules, "metricjax.diagnostics.device_checks", None)
    monkeypatch.delattr("metricjax.diagnostics.device_checks")
    assert doctor.main([]) == 2
    found = lines_of(capsys.readouterr().out)
    assert [line[:2] for line in found] == [[OK, "versions"], [FAILED, "import"]]
    assert "reinstall metricjax" in found[1][2]


GOOD = {"metricjax": "0.1.0", "jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8"}
NEEDS = {
    "metricjax": [
        "jax<0.12,>=0.10",
        "flax>=0.12",
        "array-record>=0.8.1; sys_platform == 'win33'",
        "gcsfs; extra == 'tpu'",
    ],
    "jax": [
        "jaxlib<=0.10.2,>=0.10.0",
        "libtpu==0.0.42.*; extra == 'tpu'",
        "jax-cuda13-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == 'cuda13'",
    ],
    "flax": ["jax>=0.9"],
}


@pytest.fixture
def install(monkeypatch):
    """Pretends that these packages, and no others, are installed."""

    def pretend(installed, needs=NEEDS):
        def look_up(table, name):
            if name not in installed:
                raise importlib.metadata.PackageNotFoundError(name)
            return table.get(name)

        version, requires = (
            (lambda n: look_up(installed, n)),
            lambda n: look_up(needs, n),
        )
        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.metadata, "requires", requires)

    return pretend


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"libtpu": "0.0.42.1"},
        {"jax-cuda13-plugin": "0.10.2"},
        {"gcsfs": "1"},
        {"jaxlib": "0.10.2.dev1+cpu"},
    ],
)
def test_versions_that_belong_together(install, more):
    install(GOOD | more)
    check = host_checks.versions()
    assert check.status == OK and "jax 0.10.2" in check.sentence


@pytest.mark.parametrize(
    ("more", "said", "remedy"),
    [
        (
            {"jax": "0.9.1"},
            "metricjax needs jax<0.12,>=0.10, but there is 0.9.1",
            "jax",
        ),
        ({"flax": None}, "needs flax>=0.12, but there is none", "'flax>=0.12'"),
        ({"libtpu": "0.0.30"}, "jax needs libtpu==0.0.42.*", "'libtpu==0.0.42.*'"),
        ({"jax-cuda13-plugin": "0.10.1"}, "there is 0.10.1", "'jax-cuda13-plugin"),
        ({"jaxlib": "0.10.1"}, "jaxlib==0.10.2, but there is 0.10.1", "jaxlib==0.10.2"),
    ],
)
def test_versions_that_do_not(install, more, said, remedy):
    install({name: v for name, v in (GOOD | more).items() if v})
    check = host_checks.versions()
    assert check.status == FAILED and said in check.sentence
    assert remedy in check.sentence.partition("pip install ")[2]


def test_metricjax_that_is_not_installed(install):
    install({name: v for name, v in GOOD.items() if name != "metricjax"})
    check = host_checks.versions()
    assert check.status == WARNING and "pip install -e ." in check.sentence


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    check = host_checks.workdir(str(tmp_path / "file" / "run"))
    assert check.status == FAILED and "choose another --workdir" in check.sentence
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_workdir_with_little_room(tmp_path, monkeypatch):
    usage = lambda path: type("Usage", (), {"free": 2**30})  # noqa: E731
    monkeypatch.setattr(host_checks.shutil, "disk_usage", usage)
    check = host_checks.workdir(str(tmp_path))
    assert check.status == WARNING and "1.0 GiB free: free some" in check.sentence


def test_a_workdir_in_a_bucket():
    fsspec = pytest.importorskip("fsspec")
    check = host_checks.workdir("memory://doctor/runs")
    assert check == host_checks.Check(
        "workdir", OK, "memory://doctor/runs can be written, read and deleted from"
    )
    assert fsspec.filesystem("memory").find("/doctor") == []
    check = host_checks.data("memory://doctor/runs")
    assert check.status == FAILED and "is empty" in check.sentence


def test_a_bucket_of_an_unknown_kind():
    pytest.importorskip("fsspec")
    check = host_checks.workdir("nosuch://bucket/run")
    assert check.status == FAILED and "nosuch://bucket/run" in check.sentence


def test_a_bucket_without_its_package():
    try:
        importlib.metadata.version("gcsfs")
        pytest.skip("gcsfs is installed")
    except importlib.metadata.PackageNotFoundError:
        pass
    check = host_checks.workdir("gs://bucket/run")
    assert check.status == FAILED and "metricjax[remote]" in check.sentence


def test_a_bucket_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(host_checks, "_BUCKET_LIMIT", 0.05)
    monkeypatch.setattr(host_checks, "_ask_bucket", lambda *_: time.sleep(5))
    check = host_checks.data("gs://bucket/photos")
    assert check.status == FAILED and "did not answer within" in check.sentence


def test_data(tmp_path):
    check = host_checks.data(str(tmp_path))
    assert check.status == FAILED and "of 0 names: put the" in check.sentence
    archive = tmp_path / "photos.zip"
    archive.write_bytes(bytes(2**20))
    assert "a file of 1.0 MiB" in host_checks.data(str(archive)).sentence
    assert "a directory of 1 names" in host_checks.data(str(tmp_path)).sentence


@pytest.mark.parametrize(
    ("free", "status", "words"),
    [
        (8 * 2**30, OK, "8.0 GiB free"),
        (2**30, WARNING, "1.0 GiB free: end other programs"),
        (None, OK, "does not report"),
    ],
)
def test_memory(free, status, words):
    check = host_checks.memory(free)
    assert check.status == status and words in check.sentence


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"dev/nvidia0": ""}, "cuda"),
        ({"dev/accel0": ""}, "tpu"),
        ({"vendor": "0x1ae0\n", "device": "0x0063\n"}, "tpu"),
        # Google's network card, on every one of its machines.
        ({"vendor": "0x1ae0\n", "device": "0x0042\n"}, None),
        ({"vendor": "0x8086\n", "device": "0x0063\n"}, None),
    ],
)
def test_accelerators_that_the_system_shows(files, expected, tmp_path):
    for name, text in files.items():
        inside = "" if "/" in name else "sys/bus/pci/devices/0"
        path = tmp_path / inside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert device_checks.unused_accelerator(tmp_path) == expected


@pytest.mark.parametrize(
    ("platforms", "plugin", "remedy"),
    [
        ("cpu", None, "a GPU: unset JAX_PLATFORMS"),
        ("", None, "a GPU: pip install 'metricjax[cuda]'"),
        ("", "0.10.2", "a GPU: its plugin is installed but does not start"),
    ],
)
def test_a_gpu_that_is_passed_over(platforms, plugin, remedy, monkeypatch):
    monkeypatch.setattr(device_checks, "unused_accelerator", lambda: "cuda")
    monkeypatch.setattr(device_checks, "version", lambda name: plugin)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    check = device_checks.devices()
    assert check.status == WARNING and remedy in check.sentence


NO_DEVICE = (
    "import sys; from metricjax.doctor import main; sys.exit(main(sys.argv[1:]))"
)


def test_a_platform_that_is_not_there(tmp_path):
    """JAX's own error is an empty assertion."""
    result = subprocess.run(
        [sys.executable, "-m", "metricjax.doctor", "--workdir", str(tmp_path)],
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = {check: (status, s) for status, check, s in lines_of(result.stdout)}
    if "devices" in found and found["devices"][0] == OK:
        pytest.skip("there is a GPU")
    assert result.returncode == 2, result.stderr
    assert found["devices"][0] == FAILED
    assert "JAX_PLATFORMS is cuda: install its extra" in found["devices"][1]
    assert found["workdir"][0] != FAILED and "all-reduce" not in found


def said(*hosts):
    return [(f"host {i} (n{i})", facts) for i, facts in enumerate(hosts)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"jax": "0.10.1"}, "host 1 (n1) has jax 0.10.1: install the same"),
        (
            {"metricjax/training/step.py": "0"},
            "host 1 (n1) has another metricjax/training/step.py:",
        ),
        ({"metricjax/more.py": "0"}, "host 1 (n1) has another metricjax/more.py:"),
    ],
)
def test_hosts_that_run_other_programs(change, words, monkeypatch):
    def gather(topic, own):
        assert "metricjax/training/step.py" in own and own["jax"] == jax.__version__
        return said(own, own | change, own)

    monkeypatch.setattr(exchange, "gather", gather)
    check = device_checks.hosts()
    assert check.status == (FAILED if words else OK)
    assert (words or "3 with the same programs: host 0 (n0), ") in check.sentence


def test_a_workdir_that_one_host_lacks(monkeypatch, tmp_path):
    answers = {"there": said(True, False), "nowhere": said(False, False)}
    monkeypatch.setattr(exchange, "gather", lambda *_: answers["there"])
    check = device_checks.sharing(str(tmp_path))
    assert check.status == FAILED and "host 1 (n1) has no" in check.sentence
    monkeypatch.setattr(exchange, "gather", lambda *_: answers["nowhere"])
    assert device_checks.sharing(str(tmp_path)) is None


def test_one_device_has_nothing_to_reduce_over(monkeypatch):
    one = mesh.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(mesh, "make_mesh", lambda: one)
    check = device_checks.all_reduce()
    assert check.status == OK and "one device" in check.sentence


def test_a_sum_that_comes_out_wrong(monkeypatch):
    monkeypatch.setattr(device_checks.jnp, "sum", lambda x, axis: x[0] * 7)
    check = device_checks.all_reduce(0.01)
    assert check.status == FAILED and "the sum came out wrong" in check.sentence


def test_compiled_programs_are_kept_or_not(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for directory, status, words in (
        (None, OK, f"go to {tmp_path / 'home' / 'metricjax' / 'programs'}"),
        (tmp_path / "file" / "compiled", WARNING, "cannot be kept in"),
        (tmp_path / "compiled", OK, f"go to {tmp_path / 'compiled'}"),
        ("gs://bucket/compiled", OK, "go to gs://bucket/compiled"),
    ):
        directory = directory and str(directory)
        cache(directory)
        with device_checks.cache_set_aside() as found:
            assert jax.config.jax_compilation_cache_dir is None
            check = device_checks.compilation(found)
        assert check.status == status and words in check.sentence
        assert jax.config.jax_compilation_cache_dir == directory
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_compiled_programs_that_are_not_kept():
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with device_checks.cache_set_aside() as found:
            check = device_checks.compilation(found)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert check.status == WARNING
    assert "set JAX_COMPILATION_CACHE_DIR to a directory" in check.sentence


@pytest.mark.slow
def test_two_hosts(tmp_path):
    """One table, of host 0, with what is wrong on the other; one exit code."""
    program = (
        "import os, sys\n"
        "from metricjax.doctor import main\n"
        "data = sys.argv[2] if os.environ['JAX_PROCESS_ID'] == '0' else 'missing'\n"
        "sys.exit(main(['--workdir', sys.argv[1], '--data', data]))\n"
    )
    (tmp_path / "run").mkdir()
    inside = [LOCAL, "--processes", "2", "--devices", "2", "--"]
    command = [sys.executable, "-c", program, tmp_path / "run", LOCAL.parent]
    result = subprocess.run(
        [*inside, *command], capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert result.returncode == 2, result.stderr
    out = result.stdout.splitlines()
    table = [line.removeprefix("[0] ") for line in out if "Gloo" not in line]
    found = [line.strip().split(maxsplit=2) for line in table]
    ours = {check: (v, s) for v, check, s in found if not s.startswith("on host 1")}
    assert "2 with the same programs" in ours["hosts"][1]
    assert ours["sharing"][0] == ours["data"][0] == OK
    assert "over 4 devices" in ours["all-reduce"][1]
    theirs = [line for line in found if line[0] == FAILED]
    assert len(theirs) == 1 and theirs[0][1] == "data"
    assert theirs[0][2].startswith("on host 1") and "missing" in theirs[0][2]
    assert list((tmp_path / "run").iterdir()) == []
