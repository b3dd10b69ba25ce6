"""`python -m metricjax.prepare`: flags, exit codes, a full disk, training after it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny as tiny_module
from PIL import Image

from metricjax.data import open_dataset
from metricjax.data.formats import packing
from metricjax.diagnostics import dataset_check
from metricjax.prepare import USAGE, main

SHARD = "images-00000.array_record"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Four classes of three images of 60 x 50 pixels, in the working directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for c in range(4):
        folder = tmp_path / "photos" / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def refuse(capsys, *arguments):
    """The one sentence on stderr of a command line that is refused."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("metricjax: ") and err.endswith(".\n")
    assert err.count("\n") == 1 and "Traceback" not in err
    return err


def test_help(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == USAGE
    assert main([]) == 2
    assert all(len(line) <= 88 for line in USAGE.splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photos"], "--out is missing"),
        (["photos", "--out", "out", "--shortside", "9"], "--shortside"),
        (["photos", "--out", "out", "--short-side", "small"], "invalid int value"),
        (["photos", "--out", "out", "--short-side", "-1"], "--short-side must be 0"),
        (["photos", "--out", "out", "--threads", "0"], "--threads 1 or more"),
        (["photos", "--out", "out", "--name", "fodler"], "did you mean 'folder'"),
        (["photos", "--out", "out", "--cropped"], "no option 'cropped'"),
        (["nowhere", "--out", "out"], "does not exist"),
        (["--out", "out"], "needs data.root"),
        (["photos", "--check", "--verify"], "two commands"),
        (["--verify"], "needs the directory"),
        (["--verify", "photos"], "holds no manifest.json"),
        (["photos", "--out", "photos"], "holds something else"),
    ],
)
def test_mistakes(photos, tmp_path, capsys, arguments, words):
    assert words in refuse(capsys, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_pack_and_verify(photos, capsys):
    command = ["photos", "--out", "out", "--short-side", "25", "--threads", "2"]
    assert main(command) == 0
    said, err = capsys.readouterr()
    assert err == ""
    assert "No split is given" in said
    assert f"{SHARD}: 12 images, 0.1 MiB\n" in said
    assert "Packed 12 images, 0.1 MiB; no shorter side is over 25 pixels." in said
    packed = open_dataset("packed", "out")
    assert packed.train.read(0).shape == (25, 30, 3)
    manifest = json.loads((photos.parent / "out" / "manifest.json").read_bytes())
    assert manifest["source"] == "photos"
    assert str(photos.parent) not in json.dumps(manifest)
    assert main(command) == 0
    assert "out is complete: there is nothing to do." in capsys.readouterr().out
    assert "short_side is 25 there and 256 now" in refuse(
        capsys, "photos", "--out", "out"
    )
    assert main(["--verify", "out"]) == 0
    assert "out is whole: 12 images" in capsys.readouterr().out
    os.truncate(photos.parent / "out" / SHARD, 99)
    assert main(["--verify", "out"]) == 2
    assert f"{SHARD} has 99 bytes instead of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"), [("glyphs", "data.root is 'photos'"), ("cub", "CUB-200-2011")]
)
def test_other_data_sets(photos, capsys, name, words):
    assert words in refuse(capsys, "photos", "--name", name, "--out", "out")


def test_a_closed_set_is_asked_for(photos, capsys):
    for split in ("train", "test"):
        (photos / split).mkdir()
        (photos / f"class{0 if split == 'train' else 1}").rename(
            photos / split / "same"
        )
        (photos / f"class{2 if split == 'train' else 3}").rename(photos / split / split)
    assert "in both splits" in refuse(capsys, "photos", "--out", "out")
    assert main(["photos", "--out", "out", "--closed-set"]) == 0
    assert open_dataset("packed", "out", closed_set=True).train.num_classes == 2


@pytest.mark.parametrize(
    ("arguments", "page"), [((), "check.html"), (("--out", "a.html"), "a.html")]
)
def test_check(photos, monkeypatch, arguments, page):
    seen = []

    def run(dataset, page, *, threads, progress):
        seen.append((len(dataset.train), str(page), threads))
        return 2

    monkeypatch.setattr(dataset_check, "run", run)
    assert main(["--check", "photos", "--threads", "3", *arguments]) == 2
    assert seen == [(6, page, 3)]


def test_stopped_by_hand(photos, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "pack", stop)
    assert main(["photos", "--out", "out"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_stopped_by_ctrl_c(photos):
    """A real signal, while threads decode."""
    program = (
        "import os, signal, sys\n"
        "from metricjax.data.formats import shard_writer\n"
        "from metricjax.prepare import main\n"
        "encode = shard_writer._encode\n"
        "def interrupted(*arguments):\n"
        "    if len(done) == 5: os.kill(os.getpid(), signal.SIGINT)\n"
        "    done.append(1)\n"
        "    return encode(*arguments)\n"
        "done, shard_writer._encode = [], interrupted\n"
        "shard_writer.SHARD_RECORDS = 2\n"
        "sys.exit(main(['photos', '--out', 'out', '--threads', '1']))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert result.returncode == 130, result.stderr.decode()
    assert not (photos.parent / "out" / "manifest.json").exists()
    assert not list((photos.parent / "out").glob(".*"))
    assert main(["photos", "--out", "out"]) == 0


# Packs onto a disk that gets full on the way, makes room, packs again.
FULL_DISK = """
import os, sys
from metricjax.data.formats import shard_writer
from metricjax.prepare import main

shard_writer.SHARD_RECORDS = 4
room = int(sys.argv[1]) << 10
free = os.statvfs("disk").f_bavail * os.statvfs("disk").f_frsize
with open("disk/ballast", "wb") as file:
    file.write(bytes(free - room))
code = main(["photos", "--out", "disk/out"])
assert code == 2, code
assert not os.path.exists("disk/out/manifest.json")
assert not [name for name in os.listdir("disk/out") if name.startswith(".")]
os.unlink("disk/ballast")
assert main(["photos", "--out", "disk/out"]) == 0
assert main(["--verify", "disk/out"]) == 0
"""


@pytest.mark.parametrize("room", [0, 8, 40, 80, 150])
def test_the_disk_gets_full(photos, tmp_path, room):
    (tmp_path / "disk").mkdir()
    inside = tiny_module.on_small_disk(tmp_path / "disk", "1m")
    command = [*inside, sys.executable, "-c", FULL_DISK, str(room)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("metricjax: disk/out")
    assert "the disk is full; free some space" in result.stderr
    assert result.stderr.count("\n") == 1
    assert ("Resuming after" in result.stdout) == (room == 150)


@pytest.mark.slow
def test_training_on_packed_images(tiny, tmp_path):
    """As the same run on the folder, digit for digit."""
    assert main([str(tiny.shapes), "--out", str(tmp_path / "packed")]) == 0
    settings = ("data.name=packed", f"data.root={tmp_path / 'packed'}")
    result = tiny.run(tmp_path / "run", *settings)
    assert result.returncode == 0, result.stderr
    assert "Packed 84 images" in result.stdout
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    expected = json.loads((tiny.finished / "results.json").read_text())
    assert found["parameters_sha256"] == expected["parameters_sha256"]
    assert found["map@r"] == expected["map@r"]
