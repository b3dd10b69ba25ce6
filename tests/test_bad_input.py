"""What users get wrong, through the command line: exit code 2 and one sentence."""

import json
import shutil
import sys
import zipfile

import pytest
import tiny as tiny_module
from paths import CONFIGS
from PIL import Image

from metricjax.data.datasets import open_dataset
from metricjax.data.splits import holdout
from metricjax.main import main


@pytest.fixture
def refuse(tiny, tmp_path, monkeypatch, capsys):
    """Runs the tiny config with overrides; returns the sentence that refuses it."""
    monkeypatch.chdir(tiny.directory)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def call(*overrides, workdir=tmp_path / "run"):
        before = files_of(tmp_path)
        arguments = ["--config", "tiny.py", "--workdir", str(workdir)]
        code = main([*arguments, *(f"--config.{override}" for override in overrides)])
        err = capsys.readouterr().err
        assert code == 2
        assert err.startswith("metricjax: ") and err.endswith(".\n")
        assert err.count("\n") == 1 and "Traceback" not in err
        assert files_of(tmp_path) == before
        return err

    return call


def files_of(directory):
    return {p: p.is_file() and p.read_bytes() for p in directory.rglob("*")}


def copy_shapes(tiny, directory):
    return shutil.copytree(tiny.shapes, directory)


def cut_short(path):
    """An image that begins well and ends early."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_no_such_data_set(refuse):
    message = refuse("data.name=foldr")
    assert "'foldr'" in message and "did you mean 'folder'" in message
    assert "glyphs" in message


@pytest.mark.parametrize("name", ["cub", "cars", "sop", "inshop"])
def test_benchmarks_say_what_to_get_and_where(refuse, name):
    message = refuse(f"data.name={name}", "data.root=somewhere")
    for word in (f"'{name}'", "'somewhere'", "does not exist", "https://", "data.root"):
        assert word in message


def test_no_such_root(refuse):
    message = refuse("data.root=nowhere/at/all")
    assert "data.root 'nowhere/at/all'" in message and "does not exist" in message
    message = refuse("data.root=nowhere", "data.source=get shapes from the shop.")
    assert "'nowhere'" in message and "get shapes from the shop" in message


def test_folders_without_enough_in_them(refuse, tiny, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"'{empty}'" in refuse(f"data.root={empty}")
    (empty / "class0").mkdir()
    assert f"'{empty}'" in refuse(f"data.root={empty}")
    (empty / "class0" / "notes.txt").write_text("no image")
    assert "no readable image" in refuse(f"data.root={empty}")

    one = tmp_path / "one"
    shutil.copytree(tiny.shapes / "class00", one / "class00")
    message = refuse(f"data.root={one}")
    assert f"'{one}'" in message and "one class, 'class00'" in message

    for label in range(1, 5):
        (one / f"class{label:02d}").mkdir()
        shutil.copy(tiny.shapes / f"class{label:02d}" / "0.png", one / f"class0{label}")
    for path in list((one / "class00").iterdir())[1:]:
        path.unlink()
    message = refuse(f"data.root={one}")
    assert f"'{one}'" in message and "only one image" in message


def test_a_batch_of_more_classes_than_there_are(refuse):
    message = refuse("batch_size=16")
    assert "16" in message and "8 classes" in message and "there are 4" in message
    assert "8." in message


def test_a_batch_that_k_or_the_devices_do_not_divide(refuse):
    assert "config.batch_size is 9" in refuse("batch_size=9")
    message = refuse("batch_size=10")
    assert "config.batch_size is 10, which 8 devices" in message
    message = refuse("evaluation.batch_size=20")
    assert "config.evaluation.batch_size is 20, which 8 devices" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.holdout=0", ["0", "between 0 and 1"]),
        ("data.holdout=0.9", ["Holding out 6 of 7", "smaller share"]),
        ("model.backbone=resnet5", ["'resnet5'", "resnet50"]),
        ("model.dim=-2", ["dim is -2"]),
        ("data.transform.recipe=affin", ["'affin'", "affine"]),
        ("data.transform.channels=2", ["channels is 2"]),
        ("optimizer.warmup_steps=30", ["optimizer.warmup_steps is 30", "30 steps"]),
        ("optimizer.method=adamm", ["optimizer.method is 'adamm'", "adamw"]),
        ("objective.matmul_dtype=float16", ["objective.matmul_dtype is 'float16'"]),
    ],
)
def test_settings_that_do_not_fit(refuse, override, words):
    message = refuse(override)
    for word in words:
        assert word in message


def test_a_zip_that_leads_out_of_itself(refuse, tiny, tmp_path):
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tiny.shapes / "class00" / "0.png", "../class00/0.png")
    message = refuse(f"data.root={path}")
    assert str(path) in message and "'../class00/0.png'" in message
    assert not (tmp_path.parent / "class00").exists()


def test_a_zip_that_is_none(refuse, tiny, tmp_path):
    path = tmp_path / "images.zip"
    shutil.copy(tiny.shapes / "class00" / "0.png", path)
    message = refuse(f"data.root={path}")
    assert str(path) in message and "neither a directory nor a .zip" in message


def test_a_workdir_of_another_config(refuse, tiny, tmp_path):
    workdir = shutil.copytree(tiny.finished, tmp_path / "run")
    message = refuse("seed=5")
    assert str(workdir) in message and "(seed: 0 -> 5)" in message
    assert "--workdir" in message
    (workdir / "config.json").write_text("{")
    assert str(workdir / "config.json") in refuse()


def test_a_workdir_that_is_a_file(refuse, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    message = refuse(workdir=path)
    assert f"--workdir {path}" in message and "choose another" in message


def test_a_class_without_a_readable_image(tiny, tmp_path):
    """Found out while training, when the images are decoded."""
    root = copy_shapes(tiny, tmp_path / "shapes")
    for label in range(7):
        for path in (root / f"class{label:02d}").iterdir():
            cut_short(path)
    result = tiny.run(tmp_path / "run", f"data.root={root}")
    assert result.returncode == 2
    assert result.stderr.startswith("metricjax: None of the 6 images of class 'class")
    assert result.stderr.count("\n") == 1 and "/0.png" in result.stderr


@pytest.fixture(scope="module")
def messy(tiny, tmp_path_factory):
    """(workdir, output, a class) of a run on images of which some cannot be used."""
    directory = tmp_path_factory.mktemp("messy")
    root = copy_shapes(tiny, directory / "shapes")
    train, _ = holdout(open_dataset("folder", str(root)).train, 0.4, seed=0)
    alone, damaged = train.class_names[:2]
    for name in (alone, "class08"):
        for number in range(1, tiny_module.IMAGES):
            (root / name / f"{number}.png").unlink()
    for name in (damaged, "class09"):
        cut_short(root / name / "2.png")
        (root / name / "3.png").write_bytes(b"")
        (root / name / "4.png").write_text("this is no image")
    (root / "class10" / "0.png").unlink()
    with Image.open(root / "class10" / "1.png") as image:
        image.save(root / "class10" / "0.jpg", format="GIF")
    # Three classes are left that have two images for a batch.
    result = tiny.run(directory / "run", f"data.root={root}", "batch_size=6")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    return directory / "run", result.stdout, damaged


def test_unreadable_images_are_named_and_the_run_goes_on(messy):
    workdir, said, damaged = messy
    results = json.loads((workdir / "results.json").read_text())
    skipped = dict(results["dataset"]["skipped"])
    assert set(skipped) == {
        f"{name}/{number}.png" for name in (damaged, "class09") for number in (2, 3, 4)
    }
    assert "truncated" in skipped["class09/2.png"]
    assert "empty" in skipped["class09/3.png"]
    assert "not an image" in skipped["class09/4.png"]
    # Empty and foreign files are left out at the start; whether an image is whole is
    # known when it is read.
    assert "4 of 74 files are left out" in said
    assert "2 images could not be read" in said
    # Two files and five more, for class08 has one image.
    images = (tiny_module.TEST * tiny_module.IMAGES) - 2 - 5
    assert results["dataset"]["test"]["images"] == images
    assert results["queries"] == images - 1 - 1


def test_classes_with_one_image_are_counted(messy):
    workdir, said, _ = messy
    results = json.loads((workdir / "results.json").read_text())
    assert "1 of the 7 train classes have one image" in said
    assert "1 of the 7 test classes have one image" in said
    assert results["lone_queries"] == results["untrained"]["lone_queries"] == 1
    assert results["dataset"]["train"]["classes"] == tiny_module.TRAIN


# Runs a command on a disk that gets full on the way, makes room, runs it again.
FULL_DISK = """
import json, os, subprocess, sys
from pathlib import Path
disk, room, command = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
(disk / "ballast").write_bytes(bytes(free - room))
found = {}
for name in ("full", "again"):
    result = subprocess.run(command, capture_output=True, text=True)
    kept = [p.name for p in (disk / "run").rglob("*")]
    found[name] = [result.returncode, result.stdout, result.stderr, kept]
    (disk / "ballast").unlink(missing_ok=True)
results = disk / "run" / "results.json"
found["results"] = json.loads(results.read_text()) if results.exists() else None
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(room, marks=[] if room == 500 else pytest.mark.slow)
        for room in (0, 40, 150, 300, 500, 700, 900)
    ],
)
def test_the_disk_gets_full(tiny, tmp_path, room):
    """The run has `room` KiB; undisturbed it takes about one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = tiny_module.on_small_disk(disk, "4m")
    script = [sys.executable, "-c", FULL_DISK, str(disk), str(room * 1024)]
    found = json.loads(tiny.run(disk / "run", inside=[*inside, *script]).stdout)
    code, said, err, kept = found["full"]
    assert code == 2, err
    assert err.startswith(f"metricjax: {disk}") and err.count("\n") == 1
    assert "the disk is full; free some space" in err
    assert "report.html" not in kept
    code, said, err, kept = found["again"]
    assert code == 0 and err == "", err
    assert room < 500 or "resuming after step" in said
    undisturbed = json.loads((tiny.finished / "results.json").read_text())
    digest = undisturbed["parameters_sha256"]
    assert found["results"]["parameters_sha256"] == digest
    assert found["results"]["map@r"] == undisturbed["map@r"]
    assert not any("tmp" in name for name in kept)


def test_more_neighbours_than_images(tmp_path, capsys):
    config = CONFIGS / "quickstart.py"
    arguments = ["--config", str(config), "--workdir", str(tmp_path / "run")]
    assert main([*arguments, "--config.evaluation.recall_at=(1,5000)"]) == 2
    assert "recall_at asks for 5000 neighbours" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_and_heads(refuse, tmp_path):
    assert "nowhere.npz was not found" in refuse("model.pretrained=nowhere.npz")
    text = tmp_path / "weights.pth"
    text.write_text("no weights")
    assert "weights.pth is not a safetensors" in refuse(f"model.pretrained={text}")
    message = refuse("model.head=ab")
    assert "'ab'" in message and "did you mean 'abe'" in message
    message = refuse("model.head=abe")
    assert "needs a classifier" in message and "head='abe'" in message
    without = ("model.head=abe", "objective.terms.softmax.weight=0")
    assert "3 learners cannot share" in refuse(*without, "model.learners=3")
    message = refuse(*without, "model.branch_after=pool3")
    assert "'pool3'" in message and "stem" in message
