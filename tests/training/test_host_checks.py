"""What hosts must agree on: which differs, in what, told in one sentence."""

import jax
import numpy as np
import pytest

from metricjax.config.schema import RunConfig
from metricjax.data.datasets import Dataset, Split
from metricjax.errors import InputError
from metricjax.objectives.objective import ObjectiveConfig, Term
from metricjax.runtime import exchange
from metricjax.training import host_checks

CONFIG = RunConfig(ObjectiveConfig({"triplet": Term(1.0, {"margin": 0.2})}))


def dataset(names=("a", "b"), labels=(0, 1), fingerprint=""):
    split = Split(np.array(labels), ("x", "y"), names, reader=lambda i: None)
    return Dataset("folder", split, split, fingerprint=fingerprint)


def told_of(monkeypatch, topic, *changes):
    """The sentence of `check_same` where hosts report facts with those changes."""

    def gather(asked, facts):
        changed = [facts | (c if asked == topic else {}) for c in changes]
        return [(f"host {i} (h{i})", facts) for i, facts in enumerate(changed)]

    monkeypatch.setattr(exchange, "gather", gather)
    with pytest.raises(InputError) as caught:
        host_checks.check_same(CONFIG, dataset())
    return str(caught.value)


@pytest.mark.parametrize(
    ("topic", "change", "words"),
    [
        ("settings", {"seed": 3}, "config.seed is 3 and 0"),
        ("settings", {"data.name": "cub"}, "config.data.name is 'cub' and 'glyphs'"),
        ("data", {"images and labels": "other"}, "images and labels"),
        ("code", {"losses/n_pair.py": "other"}, "losses/n_pair.py"),
        ("code", {"own.py": "one file more"}, "own.py"),
        ("versions", {"jax": "0.1"}, f"jax 0.1 and {jax.__version__}"),
    ],
)
def test_which_host_differs_in_what(monkeypatch, topic, change, words):
    sentence = told_of(monkeypatch, topic, {}, change)
    assert sentence.startswith(f"host 1 (h1) has other {topic} than host 0 (h0) (")
    assert f"({words}): " in sentence and "every host" in sentence
    # Most are taken to be right.
    sentence = told_of(monkeypatch, topic, change, {}, {})
    assert sentence.startswith(f"host 0 (h0) has other {topic} than host 1 (h1) (")


def test_data_that_differ_have_other_digests():
    digests = {
        host_checks._digest_of_data(data)
        for data in (
            dataset(),
            dataset(names=("a", "c")),
            dataset(labels=(1, 0)),
            dataset(fingerprint="1"),
            dataset(fingerprint="2"),
        )
    }
    assert len(digests) == 5
    assert host_checks._digest_of_data(dataset()) in digests
    moved = dataset(names=("/there/a", "/there/b"), fingerprint="1")
    assert host_checks._digest_of_data(moved) in digests


def test_settings_that_a_host_may_have_for_itself(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        exchange,
        "gather",
        lambda topic, facts: seen.setdefault(topic, [("host 0", facts)]),
    )
    host_checks.check_same(CONFIG, dataset())
    settings = seen["settings"][0][1]
    assert "seed" in settings and "data.name" in settings
    assert "data.root" not in settings and "data.threads" not in settings


def test_one_host_has_nothing_to_agree_on(tmp_path):
    assert exchange.gather("topic", 1) == [("host 0", 1)]
    host_checks.check_same(CONFIG, dataset())
    host_checks.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
