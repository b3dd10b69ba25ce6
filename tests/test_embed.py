"""`python -m metricjax.embed`: order, stops, full disks, and what is refused."""

import os
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny as tiny_module
from devices import xla_flags

from metricjax.data.collections import open_collection
from metricjax.embed import USAGE, main
from metricjax.inference import embedding_files
from metricjax.inference.trained_model import TrainedModel
from metricjax.runtime import compilation_cache

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def trained(tiny):
    return TrainedModel.open(tiny.finished)


@pytest.fixture
def opened(trained, monkeypatch, tmp_path):
    """The run `run`, opened already; works in an own directory."""
    asked = []
    monkeypatch.setattr(TrainedModel, "open", lambda run: asked.append(run) or trained)
    monkeypatch.setattr(compilation_cache, "enable", lambda: None)
    monkeypatch.chdir(tmp_path)
    return asked


def refuse(capsys, *arguments):
    """The one sentence on stderr of a command line that is refused."""
    capsys.readouterr()
    assert main(["run", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("metricjax: ") and err.endswith(".\n")
    assert err.count("\n") == 1 and "Traceback" not in err
    return err


def test_help(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == USAGE
    assert main([]) == 2
    assert all(len(line) <= 88 for line in USAGE.splitlines())


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_folder_in_its_order(tiny, trained, opened, tmp_path, capsys, suffix):
    broken = tmp_path / "shapes"
    shutil.copytree(tiny.shapes, broken)
    for name in ("class01/3.png", "class09/0.png"):
        (broken / name).write_bytes((broken / name).read_bytes()[:60])
    out = f"emb{suffix}"
    assert main(["run", "shapes", "--out", out]) == 0
    said, err = capsys.readouterr()
    assert opened == ["run"] and err == ""
    assert "2 of 84 images cannot be decoded: 'class01/3.png' (" in said
    assert ", 'class09/0.png'; their rows are marked as not valid." in said
    assert re.search(
        rf"{out}: 84 embeddings of 16 numbers; 84 images in [\d.]+ s", said
    )
    found = embedding_files.load(tmp_path / out)
    split = open_collection(tiny.shapes, channels=1)
    assert list(found.names) == list(split.names)
    assert list(found.class_names) == list(split.class_names)
    assert found.labels.tolist() == split.labels.tolist()
    assert found.model == trained.identity
    bad = [split.names.index(name) for name in ("class01/3.png", "class09/0.png")]
    assert np.flatnonzero(~found.valid).tolist() == bad
    expected = trained.embed(split).embeddings
    np.testing.assert_array_equal(found.embeddings[found.valid], expected[found.valid])
    before = (tmp_path / out).read_bytes()
    assert main(["run", "shapes", "--out", out]) == 0
    assert f"{out} is complete: there is nothing to do." in capsys.readouterr().out
    assert (tmp_path / out).read_bytes() == before
    shutil.rmtree(broken / "class00")
    assert "holds embeddings of other images" in refuse(capsys, "shapes", "--out", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [out, "shapes"]


def test_the_images_of_the_run(tiny, opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.directory)
    out = tmp_path / "emb.npz"
    assert main(["run", "--part", "test", "--out", str(out)]) == 0
    found = embedding_files.load(out)
    assert len(found) == 42 and found.class_names[0] == "class07"


def test_a_list(tiny, trained, opened, tmp_path):
    names = ["class03/1.png", "class00/2.png", "gone.png", "class03/1.png"]
    (tmp_path / "list.txt").write_text("\n".join(f"shapes/{name}" for name in names))
    (tmp_path / "shapes").symlink_to(tiny.shapes)
    assert main(["run", "list.txt", "--out", "emb.npz"]) == 0
    found = embedding_files.load(tmp_path / "emb.npz")
    assert list(found.names) == [f"shapes/{name}" for name in names]
    assert found.valid.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(found.embeddings[0], found.embeddings[3])


def test_labels_that_changed_are_other_images(tiny, opened, tmp_path, capsys):
    shutil.copytree(tiny.shapes, tmp_path / "shapes")
    table = tmp_path / "shapes" / "labels.csv"
    table.write_text("path,label\nclass00/0.png,a\nclass00/1.png,b\n")
    assert main(["run", "shapes", "--out", "emb.npz"]) == 0
    table.write_text("path,label\nclass00/0.png,a\nclass00/1.png,a\n")
    words = refuse(capsys, "shapes", "--out", "emb.npz")
    assert "holds embeddings of other images" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["images"], "--out is missing"),
        (["images", "--out", "emb.csv"], "neither .npz nor .parquet"),
        (["images", "--out", "none/emb.npz"], "there is no directory none"),
        (["images", "--out", "emb.npz", "--threads", "0"], "--threads must be"),
        (["images", "--out", "emb.npz", "--part", "half"], "all, train, test"),
        (["images", "--out", "emb.npz", "--nam", "cub"], "--nam"),
        (["images", "--out", "emb.npz", "--name", "cup"], "did you mean 'cub'"),
        (["nowhere", "--out", "emb.npz"], "'nowhere' does not exist"),
        (["images", "--out", "emb.npz"], "There is no image in 'images'"),
        (["images", "--out", "taken.npz"], "taken.npz is no .npz of embeddings"),
    ],
)
def test_mistakes(opened, tmp_path, capsys, arguments, words):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").write_text("no image")
    if "taken.npz" in arguments:
        shutil.copytree(tmp_path / "images", tmp_path / "kept")
        (tmp_path / "images" / "a.gif").write_bytes(b"GIF89a")
        (tmp_path / "taken.npz").write_bytes(b"something else")
    assert words in refuse(capsys, *arguments)
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize(
    ("missing", "words"),
    [("config.json", "holds no run"), ("results.json", "is not finished")],
)
def test_no_run_and_one_that_is_not_finished(
    tiny, tmp_path, capsys, monkeypatch, missing, words
):
    monkeypatch.setattr(compilation_cache, "enable", lambda: None)
    shutil.copytree(
        tiny.finished, tmp_path / "run", ignore=shutil.ignore_patterns("check*")
    )
    (tmp_path / "run" / missing).unlink()
    monkeypatch.chdir(tmp_path)
    assert words in refuse(capsys, str(tiny.shapes), "--out", "emb.npz")
    assert main([str(tmp_path / "nowhere"), "a", "--out", "emb.npz"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_none_can_be_decoded(opened, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for i in range(7):
        (tmp_path / "images" / f"{i}.gif").write_bytes(b"GIF89a")
    words = refuse(capsys, "images", "--out", "emb.npz")
    assert "None of the 7 images can be decoded, the first is '0.gif'" in words
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_unfinished_embeddings_of_something_else(tiny, opened, tmp_path, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embedding_files, "save", stop)
        assert main(["run", str(tiny.shapes), "--out", "emb.npz"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    half = str(tiny.shapes / "class00")
    words = refuse(capsys, half, "--out", "emb.npz")
    assert "holds 84 embeddings of other images" in words
    assert main(["run", str(tiny.shapes), "--out", "emb.npz"]) == 0
    assert "Resuming after 84 images" in capsys.readouterr().out


def environment(tiny, devices=1):
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tiny.directory / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


# Forks for every start, before jax knows of any device: some are killed at the worst
# moments, the last of each file goes to the end.
KILLED = """
import os, signal, sys
import numpy as np
from metricjax import embed
from metricjax.training import workdir
from metricjax.inference import embed_to_file, embedding_files, gallery_index
from metricjax.inference import partial_embeddings, trained_model

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def after_blocks(count):
    def append(self, embedded, whole=partial_embeddings.PartialEmbeddings.append):
        if self.count == 16 * count:
            with (self.directory / "embeddings.bin").open("ab") as file:
                file.write(embedded.embeddings.tobytes()[:-9])
            die()
        whole(self, embedded)
    partial_embeddings.PartialEmbeddings.append = append

def while_saving():
    replace = os.replace
    os.replace = lambda a, b: die() if str(b).endswith("emb.npz") else replace(a, b)

for out, before in (
    ("whole.npz", None),
    ("emb.npz", lambda: after_blocks(1)),
    ("emb.npz", lambda: after_blocks(3)),
    ("emb.npz", while_saving),
    ("emb.npz", None),
):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        before and before()
        sys.exit(embed.main([sys.argv[1], sys.argv[2], "--out", out]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == (0 if before is None else -9), code
"""


def test_killed_and_started_again(tiny, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tiny.finished), str(tiny.shapes)]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment(tiny)
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "emb.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    gone_on = [int(n) for n in re.findall(r"Resuming after (\d+)", result.stdout)]
    assert 16 <= gone_on[0] < 32 and 48 <= gone_on[1] < 64 and gone_on[2:] == [84]
    assert sorted(os.listdir(tmp_path)) == ["emb.npz", "whole.npz"]


# Embeds onto a disk that gets full on the way, makes room, embeds again.
FULL_DISK = """
import os, sys
from metricjax.embed import main

room = int(sys.argv[1]) << 10
free = os.statvfs("disk").f_bavail * os.statvfs("disk").f_frsize
with open("disk/ballast", "wb") as file:
    file.write(bytes(free - room))
command = [sys.argv[2], sys.argv[3], "--out", "disk/emb.npz"]
code = main(command)
assert code == 2, code
assert [n for n in os.listdir("disk") if n != "emb.npz.unfinished"] == ["ballast"]
os.unlink("disk/ballast")
assert main(command) == 0
assert os.listdir("disk") == ["emb.npz"]
os.rename("disk/emb.npz", "disk/first.npz")
assert main(command) == 0
with open("disk/emb.npz", "rb") as a, open("disk/first.npz", "rb") as b:
    assert a.read() == b.read()
"""


@pytest.mark.parametrize("room", [0, 12, 24])
def test_the_disk_gets_full(tiny, tmp_path, room):
    (tmp_path / "disk").mkdir()
    inside = tiny_module.on_small_disk(tmp_path / "disk", "1m")
    program = [sys.executable, "-c", FULL_DISK, str(room)]
    result = subprocess.run(
        [*inside, *program, str(tiny.finished), str(tiny.shapes)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(tiny),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("metricjax: disk/emb.npz")
    assert "the disk is full; free some space and run the same command" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_on_several_hosts(tiny, trained, tmp_path):
    """Two processes of two devices; one file, the embeddings of one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "metricjax.embed", str(tiny.finished)]
    command += [str(tiny.shapes), "--out", "emb.npz"]
    for expected in ("84 images in", "is complete"):
        processes = []
        for host in range(2):
            announced = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(host),
            }
            processes.append(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=tmp_path,
                    env=environment(tiny, devices=2) | announced,
                )
            )
        said = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert expected in said[0] and "emb.npz" not in said[1]
    found = embedding_files.load(tmp_path / "emb.npz")
    whole = trained.embed(open_collection(tiny.shapes, channels=1)).embeddings
    np.testing.assert_allclose(found.embeddings, whole, atol=1e-5)
