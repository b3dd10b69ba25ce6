"""The cross-batch memory: a ring against a queue, and pair losses against it."""

from collections import deque

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from metricjax import losses
from metricjax.errors import InputError
from metricjax.models import Output
from metricjax.objectives import cross_batch_memory
from metricjax.objectives.cross_batch_memory import MemoryConfig
from metricjax.objectives.hierarchical_proxies import Classes
from metricjax.objectives.objective import (
    Losses,
    ObjectiveConfig,
    Term,
    objective,
    remember,
)

remember_jitted = jax.jit(cross_batch_memory.remember)


def batch(size, number):
    rng = np.random.default_rng(number)
    rows = {"unit": rng.normal(size=(size, 2, 3)).astype(np.float32)}
    return rows, rng.integers(0, 9, size).astype(np.int32)


@pytest.mark.parametrize(("size", "count"), [(4, 4), (12, 4), (10, 4), (7, 5)])
def test_a_ring_holds_what_a_queue_would(size, count):
    """Sizes that batches divide and others; from empty until all was written over."""
    held, queue = cross_batch_memory.empty(size, batch(count, 0)[0]), deque(maxlen=size)
    assert not held.mask.any() and len(held.labels) == size
    for number in range(1, 3 * size // count + 3):
        rows, labels = batch(count, number)
        held = remember_jitted(held, rows, labels)
        queue.extend(zip(rows["unit"], labels, strict=True))
        assert int(held.filled) == held.mask.sum() == len(queue)
        start = int(held.position) if len(queue) == size else 0
        order = (start + np.arange(len(queue))) % size
        np.testing.assert_array_equal(held.labels[order], [y for _, y in queue])
        expected = np.stack([x for x, _ in queue])
        np.testing.assert_array_equal(held.rows["unit"][order], expected)


def test_no_gradient_goes_into_the_memory():
    rows, labels = batch(4, 0)
    held = cross_batch_memory.empty(8, rows)

    def total(rows):
        return sum(
            jnp.sum(x)
            for x in cross_batch_memory.remember(held, rows, labels).rows.values()
        )

    slopes = jax.grad(total)(rows)["unit"]
    np.testing.assert_array_equal(slopes, np.zeros_like(rows["unit"]))


def test_rows_keep_the_type_of_the_memory():
    held = cross_batch_memory.empty(
        4, {"unit": jax.ShapeDtypeStruct((2, 1, 3), jnp.float32)}
    )
    rows = {"unit": jnp.ones((2, 1, 3), jnp.bfloat16)}
    held = cross_batch_memory.remember(held, rows, jnp.zeros(2, jnp.int8))
    assert held.rows["unit"].dtype == jnp.float32 and held.labels.dtype == jnp.int32


# --- in the objective ---------------------------------------------------------------

LABELS = np.repeat(np.arange(4), 2).astype(np.int32)


def outputs(number, learners=0):
    rng = np.random.default_rng(number)
    raw = rng.normal(size=(8, 6))
    parts = None
    if learners:
        parts = reference.l2_normalize(raw.reshape(8, learners, -1))
        parts = jnp.float32(parts)
    embedding = jnp.float32(reference.l2_normalize(raw))
    return Output(embedding, parts, None, jnp.zeros((8, 1, 1, 1)), jnp.float32(raw))


PAIR_LOSSES = {
    "contrastive": losses.contrastive,
    "triplet": losses.triplet,
    "n_pair": losses.n_pair,
    "lifted_structure": losses.lifted_structure,
    "multi_similarity": losses.multi_similarity,
}


@pytest.mark.parametrize(
    ("name", "learners"),
    [*((name, 0) for name in PAIR_LOSSES), ("triplet", 2), ("n_pair", 2)],
)
def test_against_the_memory_is_the_loss_with_references(name, learners):
    """Two batches in a memory of more: its empty places count for nothing."""
    config = ObjectiveConfig(
        {name: Term(0.5)}, memory=MemoryConfig(20, start_step=2, weight=3.0)
    )
    now = outputs(9, learners)
    state = Losses(config, Classes(4), now).init_state()
    past = [outputs(number, learners) for number in (1, 2)]
    labels = [LABELS[::-1].copy(), LABELS]
    for output, own in zip(past, labels, strict=True):
        state = remember(config, output, own, state)
    assert int(state["memory"].filled) == 16

    def views(output):
        whole = output.unnormalized if name == "n_pair" else output.embedding
        if not learners:
            return [whole]
        each = whole.reshape(8, learners, -1) if name == "n_pair" else output.learners
        return list(jnp.moveaxis(each, 1, 0))

    loss, within, against = jax.jit(PAIR_LOSSES[name]), 0.0, 0.0
    for number, view in enumerate(views(now)):
        references = jnp.concatenate([views(output)[number] for output in past])
        within += loss(view, LABELS)
        against += loss(
            view,
            LABELS,
            references=references,
            reference_labels=np.concatenate(labels),
        )
    assert within > 0 and against > 0

    @jax.jit
    def step(step):
        return objective(config, now, LABELS, state=state, step=step)

    total, metrics = step(2)
    assert metrics[name][0] == pytest.approx(float(within), rel=1e-5)
    assert metrics[f"{name}_memory"][0] == pytest.approx(float(against), rel=1e-5)
    assert metrics[f"{name}_memory"][1] == 1
    expected = 0.5 * float(within) + 1.5 * float(against)
    assert total == pytest.approx(expected, rel=1e-5)
    total, metrics = step(1)
    assert total == pytest.approx(0.5 * float(within), rel=1e-5)
    assert metrics[f"{name}_memory"] == (0, 0)


def test_an_empty_memory_adds_nothing():
    config = ObjectiveConfig({"triplet": Term()}, memory=MemoryConfig(16))
    state = Losses(config, Classes(4), outputs(0)).init_state()

    def total(embedding, config, state):
        output = outputs(0)._replace(embedding=embedding)
        return objective(config, output, LABELS, state=state)[0]

    plain = ObjectiveConfig({"triplet": Term()})
    embedding = outputs(0).embedding
    with_memory = jax.value_and_grad(total)(embedding, config, state)
    without = jax.value_and_grad(total)(embedding, plain, {})
    chex.assert_trees_all_close(with_memory, without, rtol=1e-6)


def test_losses_that_know_no_references_leave_the_memory_alone():
    terms = {"proxy_anchor": Term(), "ee_triplet": Term(), "contrastive": Term()}
    config = ObjectiveConfig(terms, memory=MemoryConfig(8))
    kept = Losses(config, Classes(4), outputs(0))
    metrics = objective(
        config,
        outputs(0),
        LABELS,
        proxies=kept.init_proxies(jax.random.key(0)),
        state=kept.init_state(),
    )[1]
    assert [name for name in metrics if name.endswith("_memory")] == [
        "contrastive_memory"
    ]
    assert set(kept.init_state()["memory"].rows) == {"unit"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": -1}, "objective.memory.size is -1: it must be 0 or more"),
        ({"start_step": -1}, "objective.memory.start_step is -1"),
        ({"weight": 0.0}, "objective.memory.weight is 0.0: it must be above 0"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(InputError, match=words):
        MemoryConfig(**settings)


def test_a_memory_that_nothing_looks_into_is_refused():
    with pytest.raises(InputError, match="memory.size is 8, but no loss of .* triplet"):
        ObjectiveConfig({"softmax": Term()}, memory=MemoryConfig(8))
