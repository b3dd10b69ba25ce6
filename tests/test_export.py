"""A run exported and loaded as users do, the card beside it, what is refused."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image

from metricjax.data import transforms
from metricjax.data.decoding import decode
from metricjax.errors import InputError
from metricjax.export import main
from metricjax.exporters import formats, loading_snippets, model_card
from metricjax.inference.trained_model import TrainedModel

pytest.importorskip("flatbuffers")
pytestmark = pytest.mark.usefixtures("quick")

# Whoever imports one of these is not on their own.
ALONE = """
import sys
for name in ("metricjax", "flax", "optax", "orbax", "grain", "ml_collections"):
    sys.modules[name] = None
"""


@pytest.fixture(scope="module")
def trained(tiny):
    return TrainedModel.open(tiny.finished)


def written(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr()


def program_in(card):
    (program,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.S)
    return program


def run_alone(program, directory, **options):
    return subprocess.run(
        [sys.executable, "-c", ALONE + program],
        cwd=directory,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
        **options,
    ).stdout


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_the_card_s_program_embeds_as_the_run_does(
    kind, tiny, trained, tmp_path, capsys
):
    """In a process that has nothing of metricjax, from the files that lie there."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    out = tmp_path / f"model.{kind}"
    code, said = written(capsys, tiny.finished, "--format", kind, "--out", out)
    assert code == 0, said.err
    assert "its embeddings are the run's within" in said.out
    files = ["class00/0.png", "class09/3.png"]
    for file, name in zip(files, ("first.png", "second.png"), strict=True):
        shutil.copy(tiny.shapes / file, tmp_path / name)
    program = program_in(tmp_path / f"{out.name}.md")
    program += "\nprint(embeddings.dtype, embeddings.tolist())"
    *_, last = run_alone(program, tmp_path).splitlines()
    dtype, _, numbers = last.partition(" ")
    images = [decode((tiny.shapes / file).read_bytes(), 1) for file in files]
    assert dtype == "float32"
    np.testing.assert_allclose(
        json.loads(numbers), trained.embed_images(images), atol=1e-5
    )


def test_stablehlo_for_many_platforms_and_any_batch(trained):
    content = formats.stablehlo(trained, ["cpu", "cuda", "tpu"])
    exported = jax_export.deserialize(bytearray(content))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    (images,) = exported.in_avals
    assert images.dtype == np.uint8 and images.shape[1:] == (16, 16, 1)
    assert jax_export.is_symbolic_dim(images.shape[0])
    run = formats.run_stablehlo(content)
    for count in (1, 2, 7):
        found = run(np.zeros((count, 16, 16, 1), np.uint8))
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert formats.difference(trained, run) < 1e-5


def test_a_network_of_bfloat16_becomes_onnx_in_float32(trained):
    pytest.importorskip("onnxruntime")
    model = dataclasses.replace(trained.config.model, dtype="bfloat16")
    config = dataclasses.replace(trained.config, model=model)
    content = formats.onnx(dataclasses.replace(trained, config=config))
    # What is asked for is the float32 network, and it has been judged above.
    assert formats.difference(trained, formats.run_onnx(content)) < 1e-5


def test_a_difference_is_found(trained):
    def wrong(images):
        found = trained.embed_images(list(images))
        found[0, 0] += 0.01
        return found

    assert formats.difference(trained, wrong) == pytest.approx(0.01, rel=1e-3)


def test_nan_is_told(trained):
    lost = jax.tree.map(lambda leaf: leaf * jnp.nan, trained.variables)
    with pytest.raises(InputError, match="gives NaN"):
        formats.difference(dataclasses.replace(trained, variables=lost), None)


def test_the_numbers_of_the_card_are_those_of_the_run(trained):
    thresholds = [
        {
            "false_match_rate": 0.01,
            "similarity": 0.71234,
            "true_match_rate": 0.834,
            "interval": [0.81, 0.85],
            "test": {"false_match_rate": 0.0123, "true_match_rate": 0.79},
        }
    ]
    results = trained.results | {"thresholds": thresholds, "warnings": ["Slow."]}
    card = model_card.render(
        dataclasses.replace(trained, results=results), "a.onnx", "onnx", [], 3e-7
    )
    for name in ("recall@1", "map@r"):
        low, high = results["intervals"][name]
        assert f"| {results[name]:.4f} | {low:.4f} to {high:.4f} |" in card
    assert f"Recall@1 {results['floor']:.4f}" in card
    assert "| 1% | 0.7123 | 83.4% (81 to 85) | 1.23% | 79% |" in card
    assert "| trained on | 4 | 24 |" in card and "Warning of the run: Slow." in card
    assert trained.identity in card and results["dataset"]["fingerprint"] in card
    assert "yours to state" in card and "uint8 [b, 16, 16, 1]" in card
    assert str(trained.config.data.root) not in card  # a place on one machine


def test_a_card_says_what_was_chosen_on_the_test_classes(trained):
    results = trained.results | {"selected_on_test": True}
    card = model_card.render(
        dataclasses.replace(trained, results=results), "a", "stablehlo", ["cpu"], 0.0
    )
    assert "chosen on the test classes: this is too good" in card
    assert "held out of training" not in card


def test_a_card_of_a_run_that_recorded_less(trained):
    results = {"dataset": {"train": {"classes": 4, "images": 24}}}
    card = model_card.render(
        dataclasses.replace(trained, results=results), "a", "stablehlo", ["cpu"], 0.0
    )
    assert "No thresholds are recorded" in card and "nan" not in card.lower()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("recipe", transforms.RECIPES)
def test_the_card_sizes_images_as_tests_do(recipe, channels, tmp_path):
    config = transforms.TransformConfig(recipe, 24, channels)
    image = np.random.default_rng(0).integers(0, 256, (61, 97, channels), np.uint8)
    Image.fromarray(image.squeeze()).save(tmp_path / "a.png")
    text = loading_snippets.snippet(config, "model.onnx", "onnx")
    (code,) = re.findall(r"(def prepared.*?\n)\n\n", text, re.S)
    names = {}
    exec("import numpy as np\nfrom PIL import Image, ImageOps\n" + code, names)
    expected = transforms.build(config).prepare_test(image)
    np.testing.assert_array_equal(names["prepared"](tmp_path / "a.png"), expected)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "--format is missing"),
        (["--format", "torch"], "'torch'"),
        (["--format", "onnx", "--platforms", "cpu"], "leave it out"),
        (["--format", "stablehlo", "--platforms", "cpu,vax"], "'vax'"),
        (["--format", "onnx", "--out", "missing/model.onnx"], "directory that exists"),
        (["--format", "onnx", "--out", "."], "directory that exists"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, said, tiny, capsys):
    code, printed = written(capsys, tiny.finished, *arguments)
    assert code == 2 and said in printed.err and printed.err.count("\n") == 1


def test_a_run_that_is_not_finished(tiny, tmp_path, capsys):
    shutil.copy(tiny.finished / "config.json", tmp_path)
    code, printed = written(capsys, tmp_path, "--format", "onnx")
    assert code == 2 and "is not finished" in printed.err
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize(
    "kind, module, extra",
    [
        ("onnx", "onnx", "metricjax[onnx]"),
        ("onnx", "onnxruntime", "metricjax[onnx]"),
        ("stablehlo", "flatbuffers", "metricjax[export]"),
    ],
)
def test_a_missing_extra_is_named(
    kind, module, extra, tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)
    code, printed = written(
        capsys, tiny.finished, "--format", kind, "--out", tmp_path / "model"
    )
    assert code == 2 and f"'{extra}'" in printed.err
    assert os.listdir(tmp_path) == []


def test_what_onnx_cannot_hold_leaves_nothing(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("metricjax.exporters.onnx.convert._MOST_BYTES", 100)
    code, printed = written(
        capsys, tiny.finished, "--format", "onnx", "--out", tmp_path / "model.onnx"
    )
    assert code == 2 and "--format stablehlo" in printed.err
    assert os.listdir(tmp_path) == []
