"""What a run warns of: each detector fed by hand, and all of them in a run."""

import json
import logging
import math

import jax
import jax.numpy as jnp
import pytest

from metricjax.config.schema import RunConfig
from metricjax.errors import InputError
from metricjax.models import ModelConfig
from metricjax.objectives.objective import ObjectiveConfig, Term, check_gradients
from metricjax.training import monitors
from metricjax.training.monitors import (
    Collapse,
    Lasting,
    NoGradient,
    Recompilation,
    Starvation,
)

STEPS = range(20, 401, 20)


def said(detector, values, steps=STEPS):
    """step -> sentence, of a detector that meets the same values at every step."""
    found = {step: detector(step, values) for step in steps}
    return {step: sentence for step, sentence in found.items() if sentence}


@pytest.mark.parametrize(
    ("steps", "first"),
    [
        (range(20, 401, 20), (20, 100)),
        (range(10, 401, 10), (10, 60)),
        (range(1, 401), (1, 51)),
        (range(100, 1001, 100), (100, 500)),
    ],
)
def test_what_lasts_is_told_once(steps, first):
    lasting = Lasting()
    found = [lasting.see(step, True) for step in steps]
    assert [x for x in found if x] == [first]


def test_what_ends_and_begins_anew_has_not_lasted():
    lasting = Lasting(records=3, steps=0)
    holds = [True, True, False, True, True, False, True, True, True, True]
    found = [lasting.see(step, held) for step, held in enumerate(holds)]
    assert found == [None] * 8 + [(6, 8), None]


def distances(positive, negative, **values):
    return {"positive_distance": positive, "negative_distance": negative, **values}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (distances(0.1, 0.1), ["negative_distance 0.1", "a cosine of 0.99500)"]),
        (distances(0.0, 0.0), ["negative_distance 0,", "a cosine of 1.00000)"]),
        (distances(0.03, 0.02, triplet=0.15), ["a cosine of 0.99980)"]),
        (distances(0.015, 0.02, triplet=0.15), ["a cosine of 0.99980)"]),
        (distances(1.4, 1.4, triplet=0.1012), ["Nothing is", "stuck at 0.101)"]),
        (distances(0.01, 0.01, triplet=0.1), ["triplet stuck at 0.1)"]),
    ],
)
def test_collapse(values, words):
    found = said(Collapse({"triplet": 0.1}), values)
    assert list(found) == [100]
    assert ("collapsed" in found[100]) == (values["negative_distance"] < 1)
    for word in (*words, "from step 20 to 100", "learning_rate", "semihard", "batches"):
        assert word in found[100]
    assert "\n" not in found[100] and found[100].count(". ") == 0


@pytest.mark.parametrize(
    "values",
    [
        distances(0.05, 0.1),  # near each other, but told apart
        distances(1.4, 1.4, triplet=0.3),  # nothing learnt yet
        distances(0.3, 0.3, triplet=0.103),
        distances(1.2, 1.4, triplet=0.1),
        distances(0.5, 1.2, triplet=0.1),
        distances(math.nan, math.nan),
    ],
)
def test_what_is_no_collapse(values):
    assert said(Collapse({"triplet": 0.1}), values) == {}


def test_where_triplet_losses_rest():
    terms = {
        "triplet": Term(1.0, {"margin": 0.3, "soft": True}),
        "ee_triplet": Term(2.0, {"margin": 0.4}),
        "softmax": Term(1.0),
    }
    one = RunConfig(ObjectiveConfig(terms))
    assert monitors.resting_values(one) == {"triplet": math.log(2), "ee_triplet": 0.4}
    several = RunConfig(
        ObjectiveConfig({"triplet": Term()}), model=ModelConfig(head="abe", learners=4)
    )
    assert monitors.resting_values(several) == {"triplet": pytest.approx(0.4)}


def test_a_group_without_gradient():
    norms = {"gradient_norm": 2.0, "gradient_norm_fc_G": 0.0, "gradient_norm_fc_M": 2.0}
    found = said(NoGradient("fc_G"), norms)
    assert list(found) == [100]
    for word in ("fc_G got no gradient from step 20 to 100", "group_rates.fc_G=0"):
        assert word in found[100]
    assert said(NoGradient("fc_M"), norms) == {}
    assert said(NoGradient("fc_G"), {**norms, "gradient_norm": 0.0}) == {}


def test_only_parameters_of_losses_are_refused_without_gradient():
    """Those of the model may have none for a while: where no triplet is active."""
    check_gradients({"gradient_norm": (0.0, 1), "gradient_norm_fc_G": (0.0, 1)})
    with pytest.raises(InputError, match="proxy_nca_proxies gets no gradient"):
        check_gradients({"gradient_norm_proxy_nca_proxies": (0.0, 1)})


def test_starvation():
    found = said(Starvation(), {"data_wait": 0.41})
    assert list(found) == [120]  # the first logged step does not count
    for word in ("From step 40 to 120", "41%", "data.threads", "data.cache_gib"):
        assert word in found[120]
    assert "metricjax.prepare" in found[120] and "resizer=opencv" in found[120]
    assert said(Starvation(), {"data_wait": 0.19}) == {}


def test_starvation_does_not_look_behind_a_validation():
    """Batches pile up while it lasts; only what comes later counts."""
    detector, found = Starvation(), {}
    for number, step in enumerate(STEPS):
        if number % 2 == 0:
            detector.pause()
        share = 0.01 if number % 2 == 0 else 0.5
        found[step] = detector(step, {"data_wait": share})
    assert "spent 50%" in found.pop(200)
    assert set(found.values()) == {None}


@pytest.fixture
def heard():
    """A detector of recompilation that listens to JAX."""
    recompilation = Recompilation()
    recompilation.listen()
    yield recompilation
    recompilation.close()


def test_recompilation_for_other_shapes(heard, caplog, capfd):
    def embed_these(x, y):
        return x.sum() + y

    def never_met(x):
        return 2 * x

    program = jax.jit(embed_these)
    jnp.zeros((1, 2)).reshape(2)[:1]  # single operations do not count
    program(jnp.zeros((16, 3)), jnp.float32(1))
    program(jnp.zeros((8, 3)), jnp.float32(1))  # still the start of the run
    heard.everything_is_compiled()
    program(jnp.zeros((16, 3)), jnp.float32(1))
    jax.jit(never_met)(jnp.zeros(3))
    assert heard.sentences() == []
    program(jnp.zeros((6, 3)), jnp.float32(1))
    (sentence,) = heard.sentences()
    assert "jit(embed_these) was compiled again" in sentence
    assert "float32[6,3] instead of float32[8,3]," in sentence
    program(jnp.zeros((5, 3)), jnp.float32(1))
    assert heard.sentences() == []  # said once
    assert "Compiling" not in caplog.text + "".join(capfd.readouterr())


def test_recompilation_for_the_same_shapes(heard):
    for _ in range(2):
        jax.jit(lambda x: x * 3)(jnp.zeros(7))
        heard.everything_is_compiled()
    (sentence,) = heard.sentences()
    assert "jit(<lambda>)" in sentence
    assert "for the same shapes (float32[7])" in sentence


def test_the_log_of_jax_is_left_as_it_was(caplog):
    logger = logging.getLogger("jax._src.interpreters.pxla")
    before = logger.level, list(logger.filters)
    recompilation = Recompilation()
    recompilation.listen()
    with jax.log_compiles():  # who wants to see it sees it
        jax.jit(lambda x: x + 5)(jnp.zeros(2))
    assert "Compiling jit(<lambda>)" in caplog.text
    recompilation.close()
    assert (logger.level, logger.filters) == before


# Batches come late, each validation brings a program a shape it has not had, and the
# backbone is cut off.
DISTURB = """
import time, jax, numpy
from metricjax.training import loop
from metricjax.data import pipeline
from metricjax.models.cgd import CGD
describe = CGD._describe
def cut_off(self, letter, features):
    return describe(self, letter, jax.lax.stop_gradient(features))
CGD._describe = cut_off
validate, following = loop._validate, pipeline.Batches.__next__
@jax.jit
def helper(x):
    return x + 1
def late(self):
    time.sleep(0.06)
    return following(self)
def with_helper(run, state, done, writer):
    helper(numpy.zeros(done, numpy.float32))
    return validate(run, state, done, writer)
pipeline.Batches.__next__ = late
loop._validate = with_helper
"""


@pytest.mark.slow
def test_a_run_with_all_of_it(tiny, tmp_path):
    """A rate with which the embeddings collapse, and what `DISTURB` does."""
    workdir = tmp_path / "run"
    result = tiny.run(
        workdir,
        "objective.terms.softmax.weight=0",
        "optimizer.learning_rate=0.3",
        "steps=70",
        "log_every=5",
        before=DISTURB,
    )
    assert result.returncode == 0 and result.stderr == "", result.stderr
    lines = result.stdout.splitlines()
    warnings = [x.removeprefix("warning: ") for x in lines if x.startswith("warning: ")]
    words = ("collapsed", "backbone got no gradient", "waiting for images")
    words += ("jit(helper) was compiled again",)
    for word in words:
        assert sum(word in warning for warning in warnings) == 1, warnings
    assert len(warnings) == len(words)
    history = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert [x["message"] for x in history if x["kind"] == "warning"] == warnings
    assert json.loads((workdir / "results.json").read_text())["warnings"] == warnings
    page = (workdir / "report.html").read_text()
    assert "4 warnings during training" in page and "jit(helper)" in page


def test_a_run_in_which_nothing_is_wrong(tiny):
    results = json.loads((tiny.finished / "results.json").read_text())
    assert results["warnings"] == []
    assert "warning" not in tiny.said
