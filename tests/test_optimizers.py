"""Optimizers: one and more steps by hand, schedules, groups, clipping, checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax import optimizers
from metricjax.errors import InputError
from metricjax.optimizers import OptimizerConfig

RNG = np.random.default_rng(0)
PARAMETERS = {
    "backbone": {
        "conv": {"kernel": RNG.normal(size=(3, 3, 2, 4)), "bias": RNG.normal(size=4)},
        "bn": {"scale": RNG.normal(size=4)},
    },
    "gem": {"raw_p": RNG.normal(size=())},
    "head": {"kernel": RNG.normal(size=(4, 5))},
}
GRADIENTS = [
    jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape), PARAMETERS) for _ in range(3)
]
KERNELS = {("backbone", "conv", "kernel"), ("head", "kernel")}


def flat(tree):
    return {
        tuple(key.key for key in path): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree.flatten_with_path(tree)[0]
    }


def moved(config, count=3, steps=10, gradients=GRADIENTS):
    """Parameters after each of `count` steps of the optimizer."""
    params = jax.tree.map(jnp.float32, PARAMETERS)
    optimizer = optimizers.build(config, steps, params)
    state = optimizer.init(params)
    history = []
    for slopes in gradients[:count]:
        slopes = jax.tree.map(jnp.float32, slopes)
        updates, state = optimizer.update(slopes, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        history.append(flat(params))
    return history


def by_hand(method, decay=0.0, momentum=0.9, rate=lambda step: 0.1, count=3):
    """The same with the textbook's formulas, a parameter at a time, float64."""
    history = [{} for _ in range(count)]
    for path, value in flat(PARAMETERS).items():
        first, second, trace = 0.0, 0.0, 0.0
        decayed = decay if path in KERNELS else 0.0
        for step in range(count):
            slope = flat(GRADIENTS[step])[path]
            if method != "adamw":
                slope = slope + decayed * value
            if method == "sgd":
                trace = slope + momentum * trace
                direction = trace
            else:
                first = 0.9 * first + 0.1 * slope
                second = 0.999 * second + 0.001 * slope**2
                mean = first / (1 - 0.9 ** (step + 1))
                square = second / (1 - 0.999 ** (step + 1))
                direction = mean / (np.sqrt(square) + 1e-8)
            if method == "adamw":
                direction = direction + decayed * value
            value = value - rate(step) * direction
            history[step][path] = value
    return history


def orthogonalized(matrix, steps=5):
    """Newton-Schulz of the quintic with Muon's coefficients."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / np.linalg.norm(wide)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def test_muon_by_hand():
    """Kernels of several pixels behind the first layer; all else is AdamW."""
    rng = np.random.default_rng(5)
    params = {
        "deep": {"kernel": rng.normal(size=(3, 3, 5, 4))},
        "first": {"kernel": rng.normal(size=(3, 3, 3, 4))},
        "pointwise": {"kernel": rng.normal(size=(1, 1, 5, 4))},
    }
    gradient = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    config = OptimizerConfig(
        "muon", learning_rate=0.01, momentum=0.8, muon_rate=5.0, weight_decay=0.1
    )
    params = jax.tree.map(jnp.float32, params)
    optimizer = optimizers.build(config, 10, params)
    updates, state = optimizer.update(
        jax.tree.map(jnp.float32, gradient), optimizer.init(params), params
    )
    # The direction of the first step does not depend on the length of the momentum.
    matrix = orthogonalized(gradient["deep"]["kernel"].reshape(45, 4))
    expected = -0.01 * 5.0 * matrix.reshape(3, 3, 5, 4)
    np.testing.assert_allclose(updates["deep"]["kernel"], expected, atol=2e-4)
    for name in ("first", "pointwise"):
        slope = gradient[name]["kernel"]
        expected = -0.01 * (np.sign(slope) + 0.1 * params[name]["kernel"])
        np.testing.assert_allclose(updates[name]["kernel"], expected, atol=1e-6)
    params = jax.tree.map(jnp.add, params, updates)
    more = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), gradient)
    updates, _ = optimizer.update(jax.tree.map(jnp.float32, more), state, params)
    first, second = (tree["deep"]["kernel"] for tree in (gradient, more))
    # Nesterov's look ahead, each average corrected for its start at 0.
    trace = 0.8 * (0.2 * first) + 0.2 * second
    ahead = 0.8 * trace / (1 - 0.8**3) + 0.2 * second / (1 - 0.8**2)
    matrix = orthogonalized(ahead.reshape(45, 4))
    expected = -0.05 * matrix.reshape(3, 3, 5, 4)
    np.testing.assert_allclose(updates["deep"]["kernel"], expected, atol=2e-4)


def assert_close(got, expected):
    """Within 2e-5: Adam's 1 - 0.999^t, in float32, is off by up to 6e-5 of itself."""
    assert got.keys() == expected.keys()
    for path in got:
        np.testing.assert_allclose(
            got[path], expected[path], rtol=2e-5, atol=2e-5, err_msg=str(path)
        )


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("method", ["adam", "adamw", "sgd"])
def test_steps_by_hand_and_decay_of_kernels_only(method, decay):
    config = OptimizerConfig(method=method, learning_rate=0.1, weight_decay=decay)
    for got, expected in zip(moved(config), by_hand(method, decay), strict=True):
        assert_close(got, expected)


def test_momentum():
    config = OptimizerConfig(method="sgd", learning_rate=0.1, momentum=0.0)
    assert_close(moved(config)[-1], by_hand("sgd", momentum=0.0)[-1])


@pytest.mark.parametrize("method", ["adam", "adamw", "sgd"])
def test_learning_rate_follows_the_schedule(method):
    config = OptimizerConfig(
        method=method, learning_rate=0.4, schedule="step", step_boundaries=(1, 2)
    )
    rates = [0.4, 0.04, 0.004]
    expected = by_hand(method, rate=lambda step: rates[step])
    for got, wanted in zip(moved(config), expected, strict=True):
        assert_close(got, wanted)


def rates(config, steps, at):
    schedule = optimizers.schedule(config, steps)
    return np.array([float(schedule(step)) for step in at])


def test_constant_schedule():
    config = OptimizerConfig(learning_rate=0.3)
    np.testing.assert_allclose(rates(config, 10, (0, 5, 9)), 0.3, rtol=1e-6)


def test_step_schedule():
    config = OptimizerConfig(
        learning_rate=1e-4, schedule="step", step_boundaries=(300, 600), step_decay=0.5
    )
    got = rates(config, 1000, (0, 299, 300, 599, 600, 999))
    expected = [1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 2.5e-5]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_step_schedule_counts_boundaries_from_the_start_of_the_run():
    config = OptimizerConfig(
        learning_rate=1.0, schedule="step", step_boundaries=(6,), warmup_steps=4
    )
    got = rates(config, 10, range(9))
    expected = [0, 0.25, 0.5, 0.75, 1, 1, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_cosine_schedule_with_warmup():
    config = OptimizerConfig(
        learning_rate=2.0, schedule="cosine", warmup_steps=10, final_rate=0.1
    )
    got = rates(config, 110, (0, 5, 10, 35, 60, 85, 110))
    turns = 0.5 * (1 + np.cos(np.pi * np.array([0, 0.25, 0.5, 0.75, 1])))
    expected = [0.0, 1.0, *(2.0 * (0.1 + 0.9 * turns))]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_group_rates_multiply_and_zero_freezes():
    rates = {"backbone": 0.1, "gem": 0.0}
    config = OptimizerConfig(
        method="sgd", learning_rate=0.5, weight_decay=0.3, group_rates=rates
    )
    start, got = flat(PARAMETERS), moved(config, count=1)[0]
    full = by_hand("sgd", 0.3, rate=lambda step: 0.5, count=1)[0]
    for path in start:
        factor = {"backbone": 0.1, "gem": 0.0, "head": 1.0}[path[0]]
        expected = start[path] + factor * (full[path] - start[path])
        np.testing.assert_allclose(got[path], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("named", "rate"), [({}, 100.0), ({"proxies": 3.0}, 3.0)])
def test_proxies_learn_a_hundred_times_as_fast_unless_it_is_said(named, rate):
    params = {"head": {"kernel": jnp.ones((2, 3))}, "proxies": {"a": jnp.ones((4, 3))}}
    config = OptimizerConfig(method="sgd", learning_rate=0.01, group_rates=named)
    optimizer = optimizers.build(config, 10, params)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.01, rtol=1e-6)
    np.testing.assert_allclose(updates["proxies"]["a"], -0.01 * rate, rtol=1e-6)


def test_a_rate_of_proxies_where_there_are_none():
    """The default config names it, whatever is minimised."""
    config = OptimizerConfig(group_rates={"backbone": 0.5, "proxies": 100.0})
    optimizers.build(config, 10, PARAMETERS)


@pytest.mark.parametrize("method", optimizers.METHODS)
def test_frozen_groups_do_not_move_at_all(method):
    config = OptimizerConfig(
        method=method,
        learning_rate=0.5,
        weight_decay=0.3,
        clip_norm=0.1,
        group_rates={"backbone": 0.0},
    )
    last = moved(config)[-1]
    for path, start in flat(jax.tree.map(np.float32, PARAMETERS)).items():
        assert np.array_equal(last[path], start) == (path[0] == "backbone")


def test_frozen_groups_have_no_moments():
    params = jax.tree.map(jnp.float32, PARAMETERS)
    config = OptimizerConfig(group_rates={"backbone": 0.0})
    state = optimizers.build(config, 10, params).init(params)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert (4, 5) in shapes and (3, 3, 2, 4) not in shapes


def norm(tree, groups):
    return np.sqrt(
        sum((v**2).sum() for path, v in flat(tree).items() if path[0] in groups)
    )


@pytest.mark.parametrize("frozen", [(), ("backbone",)])
def test_clipping_by_the_norm_of_what_moves(frozen):
    moving = set(PARAMETERS) - set(frozen)
    config = OptimizerConfig(
        method="sgd",
        learning_rate=1.0,
        clip_norm=0.5,
        group_rates=dict.fromkeys(frozen, 0.0),
    )
    got, start = moved(config, count=1)[0], flat(PARAMETERS)
    factor = 0.5 / norm(GRADIENTS[0], moving)
    assert factor < 1
    for path, slope in flat(GRADIENTS[0]).items():
        if path[0] in moving:
            step = start[path] - got[path]
            np.testing.assert_allclose(step, factor * slope, rtol=1e-4, atol=1e-6)


def test_clipping_leaves_small_gradients_alone():
    loose = OptimizerConfig(method="sgd", learning_rate=0.1, clip_norm=1e3)
    assert_close(moved(loose)[-1], by_hand("sgd")[-1])


def test_shapes_are_enough_to_build():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.float32, PARAMETERS))
    config = OptimizerConfig(weight_decay=0.1, group_rates={"head": 2.0})
    optimizer = optimizers.build(config, 10, shapes)
    assert jax.tree.leaves(jax.eval_shape(optimizer.init, shapes))


@pytest.mark.parametrize(
    ("sentence", "settings"),
    [
        ("optimizer.method is 'lion': choose one of adam, adamw", {"method": "lion"}),
        ("optimizer.schedule is 'linear'", {"schedule": "linear"}),
        ("optimizer.learning_rate is 0", {"learning_rate": 0.0}),
        ("optimizer.learning_rate is -1", {"learning_rate": -1.0}),
        ("step_boundaries are .* must increase", {"step_boundaries": (5, 3)}),
        ("step_boundaries are .* must increase", {"step_boundaries": (3, 3)}),
        ("group_rates.head is -0.1", {"group_rates": {"head": -0.1}}),
        ("optimizer.warmup_steps is -1: .* 0 or more", {"warmup_steps": -1}),
        ("optimizer.weight_decay is -0.1: .* 0 or more", {"weight_decay": -0.1}),
        ("optimizer.momentum is -0.5: .* 0 or more", {"momentum": -0.5}),
        ("optimizer.final_rate is -1.0: .* 0 or more", {"final_rate": -1.0}),
        ("optimizer.step_decay is -1.0: .* 0 or more", {"step_decay": -1.0}),
        ("optimizer.clip_norm is 0.0: .* above 0", {"clip_norm": 0.0}),
        ("optimizer.clip_norm is -1.0: .* above 0", {"clip_norm": -1.0}),
    ],
)
def test_settings_are_checked(sentence, settings):
    with pytest.raises(InputError, match=sentence):
        OptimizerConfig(**settings)


@pytest.mark.parametrize(
    ("sentence", "settings"),
    [
        (
            "names 'bakbone', but .* backbone, gem, head",
            {"group_rates": {"bakbone": 1}},
        ),
        ("freezes every", {"group_rates": dict.fromkeys(PARAMETERS, 0.0)}),
        ("warmup_steps is 10, but the run has 10 steps", {"warmup_steps": 10}),
    ],
)
def test_building_is_checked(sentence, settings):
    with pytest.raises(InputError, match=sentence):
        optimizers.build(OptimizerConfig(**settings), 10, PARAMETERS)
