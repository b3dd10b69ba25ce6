"""The step: it learns, is a pure function, and is the same on any number of devices."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metricjax import models, optimizers
from metricjax.data.transforms import TransformConfig
from metricjax.inference.embedder import make_embed_step
from metricjax.objectives import hierarchical_proxies
from metricjax.objectives.cross_batch_memory import MemoryConfig
from metricjax.objectives.hierarchical_proxies import Classes
from metricjax.objectives.objective import (
    Losses,
    ObjectiveConfig,
    Term,
    check_gradients,
)
from metricjax.optimizers import OptimizerConfig
from metricjax.runtime import mesh
from metricjax.training.checkpoints import Checkpoints
from metricjax.training.step import (
    init_params,
    init_state,
    make_train_step,
    output_shapes,
)

# Values do not depend on how hard LLVM tries; the time to compile does.
QUICK = {"xla_backend_optimization_level": 0}
MODEL = models.ModelConfig(backbone="convnet", widths=(4, 6), descriptors="MG", dim=12)
STEM = {"widths": (6,)}
TRANSFORM = TransformConfig(recipe="none", image_size=8, channels=1, flip=True)
TERMS = {"triplet": Term(1.0, {"margin": 0.3}), "softmax": Term(0.5)}
KEY = jax.random.key(7)
CLASSES = 4
CATEGORIES = np.array([0, 1, 1, 0])
SIDES = ("positive", "negative")
METRICS = {
    "loss", "triplet", "softmax", "positive_distance", "negative_distance", "active",
    "gradient_norm", "gradient_norm_backbone", "gradient_norm_classifier",
    "gradient_norm_classifier_bn", "gradient_norm_fc_G", "gradient_norm_fc_M", "finite",
}  # fmt: skip


def images(count=16, seed=0):
    """Class-dependent pictures under noise, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), count // CLASSES).astype(np.int32)
    patterns = np.random.default_rng(99).integers(0, 256, (CLASSES, 8, 8, 1))
    noisy = patterns[labels] + rng.normal(0, 60, (count, 8, 8, 1))
    return {"images": np.clip(noisy, 0, 255).astype(np.uint8), "labels": labels}


class Setup:
    """Model, optimizer and step of some settings; compiled once, and quickly."""

    def __init__(
        self, block_size=None, terms=TERMS, donate=(), memory=0, devices=None, parts=1,
        **model,
    ):  # fmt: skip
        settings = dataclasses.replace(MODEL, **model)
        memory = MemoryConfig(memory, start_step=1)
        config = ObjectiveConfig(terms, block_size, memory=memory)
        optimizer = OptimizerConfig(
            method="sgd", learning_rate=0.1, group_rates={"proxies": 2.0}
        )
        self.model = models.build(settings, CLASSES if config.classifies else None)
        output = output_shapes(self.model, TRANSFORM.shape, 16)
        self.losses = Losses(config, Classes(CLASSES, CATEGORIES), output)
        params = partial(init_params, self.model, TRANSFORM.shape, KEY, self.losses)
        self.optimizer = optimizers.build(optimizer, 100, jax.eval_shape(params)[0])
        self.step = make_train_step(
            self.model, self.optimizer, config, TRANSFORM, devices, parts
        )
        self.run = jax.jit(
            self.step,
            out_shardings=None if devices is None else mesh.replicated(devices),
            donate_argnums=donate,
            compiler_options=QUICK,
        )

    def init(self):
        return init_state(self.model, self.optimizer, TRANSFORM.shape, KEY, self.losses)

    def start(self):
        """As `init`, with kernels drawn by numpy, which need no compiling."""
        rng = np.random.default_rng(0)

        def zeros(leaf):
            return jnp.zeros(leaf.shape, leaf.dtype)

        def draw(path, leaf):
            kind = path[-1].key
            if kind == "kernel" or path[0].key == "proxies":
                return jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype)
            return jnp.full(leaf.shape, float(kind in ("scale", "var")), leaf.dtype)

        state = jax.eval_shape(self.init)
        return state.replace(
            step=jnp.int32(0),
            params=jax.tree.map_with_path(draw, state.params),
            batch_stats=jax.tree.map_with_path(draw, state.batch_stats),
            opt_state=jax.tree.map(zeros, state.opt_state),
            objective=jax.tree.map(zeros, state.objective),
        )


@pytest.fixture(scope="module")
def setup():
    return Setup()


@pytest.fixture(scope="module")
def start(setup):
    return setup.start()


@pytest.fixture(scope="module")
def two_steps(setup, start):
    """State and metrics after each of two steps on one device."""
    state, first = setup.run(start, images(seed=0), KEY)
    return (state, first), setup.run(state, images(seed=1), KEY)


def test_a_step_counts_and_reports(start, two_steps):
    assert [int(state.step) for state, _ in two_steps] == [1, 2]
    for _, metrics in two_steps:
        assert metrics.keys() == METRICS
        for total, count in metrics.values():
            assert total.shape == () and np.isfinite(total) and count == 1
    total, triplet, softmax = (
        float(two_steps[0][1][name][0]) for name in ("loss", "triplet", "softmax")
    )
    assert total == pytest.approx(triplet + 0.5 * softmax, rel=1e-6)
    assert start.variables.keys() == {"params", "batch_stats"}


def test_every_parameter_and_statistic_moves(start, two_steps):
    after = two_steps[1][0]
    for before, now in zip(
        jax.tree.leaves(start.variables), jax.tree.leaves(after.variables), strict=True
    ):
        assert before.shape == now.shape and before.dtype == now.dtype
        assert not np.array_equal(before, now)


def test_first_step_is_sgd_on_the_gradient_of_the_objective(setup, start, two_steps):
    """params - rate x gradient, the norm reported being that gradient's."""
    after, metrics = two_steps[0]
    steps = jax.tree.map(lambda a, b: (a - b) / 0.1, start.params, after.params)
    norm = float(optax.tree.norm(steps))
    assert metrics["gradient_norm"][0] == pytest.approx(norm, rel=1e-4)
    batch = images(seed=0)

    def loss(distance):
        """Of the same batch at parameters so far along the gradient."""
        params = jax.tree.map(lambda p, d: p + distance / norm * d, start.params, steps)
        state = start.replace(params=params)
        return float(setup.run(state, batch, KEY)[1]["loss"][0])

    # A central difference in float32, over kinks of relu and of the mining.
    assert (loss(1e-3) - loss(-1e-3)) / 2e-3 == pytest.approx(norm, rel=2e-2)


def test_the_loss_of_a_fixed_batch_falls(setup, start):
    state, batch, values = start, images(), []
    for _ in range(40):
        state, metrics = setup.run(state, batch, KEY)
        values.append(float(metrics["loss"][0]))
    assert values[-1] < 0.3 * values[0]
    near, far = (float(metrics[f"{side}_distance"][0]) for side in SIDES)
    assert near < 0.5 * far


def test_same_inputs_give_bit_equal_outputs(setup, start, two_steps):
    again = setup.run(start, images(seed=0), KEY)
    chex.assert_trees_all_equal(again, two_steps[0])


def test_first_state_is_a_function_of_the_key(setup):
    small = Setup(**STEM)
    make = jax.jit(
        lambda key: init_state(
            small.model, small.optimizer, TRANSFORM.shape, key, small.losses
        )
    )
    state = make(KEY)
    assert state.step == 0
    chex.assert_trees_all_equal(make(KEY), state)
    other = make(jax.random.key(8))
    for path in (("backbone", "stem"), ("fc_M",), ("classifier",)):
        one, two = state.params, other.params
        for name in path:
            one, two = one[name], two[name]
        assert not np.array_equal(one["kernel"], two["kernel"])
    assert np.all(state.params["classifier_bn"]["scale"] == 1)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, small.start())


def test_randomness_depends_on_key_and_step(setup, start, two_steps):
    """The flips: another key or another step mirrors other images."""
    first = two_steps[0][1]["loss"][0]
    keyed = setup.run(start, images(seed=0), jax.random.key(8))[1]["loss"][0]
    later = setup.run(start.replace(step=jnp.int32(5)), images(seed=0), KEY)
    assert keyed != first and later[1]["loss"][0] != first


def assert_near(got, expected):
    """States within 2e-5 of the largest entry of every array."""
    for mine, theirs in zip(
        jax.tree.leaves(mesh.to_host(got)), jax.tree.leaves(expected), strict=True
    ):
        bound = 2e-5 * float(np.abs(theirs).max())
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("count", "block_size"),
    [
        (1, 6),
        (2, None),
        (4, None),
        pytest.param(4, 6, marks=pytest.mark.slow),
        (8, None),
        pytest.param(8, 6, marks=pytest.mark.slow),
    ],
)
def test_devices_equal_one(count, block_size, start, two_steps):
    """Two SGD steps on a split batch: loss, parameters, statistics, gradient's scale.

    BatchNorm, mining and classification see the whole batch, so that only the order of
    float32 sums differs. Measured: metrics within 2e-6, every array after two steps
    within 5e-6 of its largest entry.
    """
    devices = mesh.make_mesh(jax.devices()[:count])
    run = Setup(block_size=block_size, devices=devices).run
    state = jax.device_put(start, mesh.replicated(devices))
    for seed in (0, 1):
        batch = mesh.global_batch(devices, images(seed=seed))
        state, metrics = run(state, batch, KEY)
        for name in METRICS:
            expected = float(two_steps[seed][1][name][0])
            assert float(metrics[name][0]) == pytest.approx(expected, rel=1e-5), name
    assert_near(state, two_steps[1][0])


# Losses with parameters, with groups that are made between steps, with a memory.
KEEPING = {
    "multi_similarity": Term(1.0, {"beta": 4.0}),
    "n_pair": Term(0.5),
    "proxy_nca": Term(0.5, {"temperature": 1.0}),
    "hierarchical_proxy": Term(
        1.0, {"scale": 4.0, "clusters": (3, 2), "level_weights": (1.0, 0.5, 0.2)}
    ),
}
# The mean pools without the kinks of a maximum, which rounding would push over.
SMALL = {"memory": 24, "descriptors": "S", **STEM}


def regrouped(setup, state, step):
    """The state with the classes grouped, as a run does it between steps."""
    name = "hierarchical_proxy"
    proxies, carried = mesh.to_host((state.proxies[name], state.objective[name]))
    config = setup.losses.config.hierarchy
    found = hierarchical_proxies.regroup(config, proxies, carried, None, 0, step)
    coarse, carried = jax.tree.map(jnp.asarray, found)
    return state.with_losses(
        {**state.proxies, name: {**state.proxies[name], **coarse}},
        {**state.objective, name: carried},
    )


@pytest.fixture(scope="module")
def keeping():
    return Setup(terms=KEEPING, **SMALL)


@pytest.fixture(scope="module")
def kept(keeping):
    """States and metrics: before any step, after one, after two more with groups."""
    state = keeping.start()
    history = [(state, {})]
    for seed in range(3):
        state, metrics = keeping.run(state, images(seed=seed), KEY)
        history.append((state, metrics))
        if seed == 0:
            state = regrouped(keeping, state, step=1)
            history[-1] = (state, metrics)
    return history


def test_parameters_of_losses_learn(kept):
    """All of them, coarse ones from the first groups on; none is the model's."""
    (start, _), (first, _), (second, _), _ = kept
    assert start.proxies.keys() == {"proxy_nca", "hierarchical_proxy"}
    assert "proxies" not in start.variables["params"]
    assert start.trained["params"]["proxies"] is start.proxies
    for before, after in zip(
        jax.tree.leaves(first.proxies), jax.tree.leaves(second.proxies), strict=True
    ):
        assert np.all(np.any(before != after, axis=1))


def test_gradients_of_loss_parameters_are_reported(kept):
    names = {"fine", "coarse1", "coarse2"}
    names = {f"gradient_norm_hierarchical_proxy_{name}" for name in names}
    names |= {"gradient_norm_proxy_nca_proxies"}
    for number in (1, 2, 3):
        metrics = kept[number][1]
        of_model = {"gradient_norm_backbone", "gradient_norm_fc_S"}
        found = {name for name in metrics if name.startswith("gradient_norm_")}
        assert found == names | of_model
        for name in names:
            norm, counts = (float(x) for x in metrics[name])
            waiting = number == 1 and "coarse" in name
            assert (norm > 0, counts) == ((False, 0) if waiting else (True, 1)), name
        check_gradients(mesh.to_host(metrics))
    (first, _), (second, metrics) = kept[1], kept[2]
    moved = (
        first.proxies["proxy_nca"]["proxies"] - second.proxies["proxy_nca"]["proxies"]
    )
    # Momentum: the second step goes on with 0.9 of the first.
    start = kept[0][0].proxies["proxy_nca"]["proxies"]
    before = start - first.proxies["proxy_nca"]["proxies"]
    slope = (moved - 0.9 * before) / (2.0 * 0.1)
    norm = metrics["gradient_norm_proxy_nca_proxies"][0]
    assert norm == pytest.approx(float(jnp.linalg.norm(slope)), rel=1e-4)


def test_the_memory_counts_from_its_start_step(kept):
    for number in (1, 2, 3):
        value, counts = kept[number][1]["multi_similarity_memory"]
        assert (value > 0, counts) == ((False, 0) if number == 1 else (True, 1))
    memory = kept[2][0].objective["memory"]
    assert int(memory.filled) == 24 and int(memory.position) == 8
    assert set(memory.rows) == {"unit", "unnormalized"}
    assert memory.rows["unit"].shape == (24, 1, 12)


def test_steps_of_losses_that_keep_something_go_on_after_a_restart(
    keeping, kept, tmp_path
):
    """To the bit: proxies, their momentum, groups and memory are in the checkpoint."""
    state = kept[1][0]
    with Checkpoints(tmp_path / "checkpoints", "map@r") as checkpoints:
        checkpoints.save(1, state, None)
        checkpoints.wait()
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                jnp.shape(x),
                jnp.result_type(x),
                sharding=mesh.replicated(mesh.make_mesh(jax.devices()[:1])),
            ),
            keeping.start(),
        )
        step, state = checkpoints.restore_latest(abstract, print)
    assert step == 1
    for number in (2, 3):
        state, metrics = keeping.run(state, images(seed=number - 1), KEY)
        chex.assert_trees_all_equal(state, kept[number][0])
        chex.assert_trees_all_equal(metrics, kept[number][1])


@pytest.mark.parametrize(
    ("count", "block_size"),
    [
        (1, 6),
        (2, None),
        pytest.param(2, 3, marks=pytest.mark.slow),
        pytest.param(4, None, marks=pytest.mark.slow),
        pytest.param(4, 6, marks=pytest.mark.slow),
        pytest.param(8, None, marks=pytest.mark.slow),
        (8, 2),
    ],
)
def test_devices_equal_one_with_proxies_groups_and_memory(count, block_size, kept):
    devices = mesh.make_mesh(jax.devices()[:count])
    setup = Setup(block_size, KEEPING, devices=devices, **SMALL)
    state = jax.device_put(kept[1][0], mesh.replicated(devices))
    for number in (2, 3):
        batch = mesh.global_batch(devices, images(seed=number - 1))
        state, metrics = setup.run(state, batch, KEY)
        for name, (total, _) in kept[number][1].items():
            expected = float(total)
            assert float(metrics[name][0]) == pytest.approx(expected, rel=2e-5), name
    assert_near(state, kept[3][0])


def test_frozen_normalisation_leaves_the_backbones_statistics_alone():
    setup = Setup(frozen_bn=True, **STEM)
    start = setup.start()
    state, _ = setup.run(start, images(), KEY)
    chex.assert_trees_all_equal(
        state.batch_stats["backbone"], start.batch_stats["backbone"]
    )
    # The classifier's normalisation starts untrained and is not frozen.
    before, after = (s.batch_stats["classifier_bn"]["mean"] for s in (start, state))
    assert not np.array_equal(before, after)


def test_bfloat16_runs_and_stays_finite():
    setup = Setup(dtype="bfloat16", **STEM)
    state = setup.start()
    for seed in range(3):
        state, metrics = setup.run(state, images(seed=seed), KEY)
        assert all(np.isfinite(total) for total, _ in metrics.values())
    for leaf in jax.tree.leaves(state.variables):
        assert leaf.dtype == jnp.float32 and np.all(np.isfinite(leaf))


def test_donated_state(start, two_steps):
    """As the run uses it: the old state is gone, the new one is the same."""
    run = Setup(donate=0).run
    state = jax.tree.map(jnp.copy, start)
    old = state.params["backbone"]["stem"]["kernel"]
    for seed in (0, 1):
        state, metrics = run(state, images(seed=seed), KEY)
    assert old.is_deleted()
    chex.assert_trees_all_equal(state, two_steps[1][0])
    chex.assert_trees_all_equal(metrics, two_steps[1][1])


def test_learners_without_a_classifier():
    """Architecture A, a triplet loss each."""
    setup = Setup(terms={"triplet": Term()}, architecture="A", **STEM)
    state, metrics = setup.run(setup.start(), images(), KEY)
    assert np.isfinite(metrics["loss"][0]) and "softmax" not in metrics
    assert "classifier" not in state.params


def test_embedding(setup, start):
    """Unit rows, the same every time, of an image alone as of one in a batch."""
    embed = jax.jit(make_embed_step(setup.model, TRANSFORM), compiler_options=QUICK)
    batch = images()["images"]
    embeddings = embed(start.variables, batch)
    assert embeddings.shape == (16, 12) and embeddings.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(embed(start.variables, batch), embeddings)
    turned = embed(start.variables, batch[::-1])
    np.testing.assert_allclose(turned[::-1], embeddings, rtol=0, atol=1e-6)


def test_embedding_on_devices_equals_one(setup, start):
    embed = jax.jit(make_embed_step(setup.model, TRANSFORM), compiler_options=QUICK)
    batch = images()
    one = embed(start.variables, batch["images"])
    devices = mesh.make_mesh()
    split = mesh.global_batch(devices, batch)["images"]
    state = jax.device_put(start, mesh.replicated(devices))
    got = embed(state.variables, split)
    assert len(got.sharding.device_set) == len(jax.devices())
    np.testing.assert_allclose(got, one, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def frozen():
    """Losses that keep something, and a model whose rows know nothing of each other."""
    return Setup(terms=KEEPING, frozen_bn=True, **SMALL)


@pytest.mark.parametrize(("count", "parts"), [(1, 2), (1, 16), (2, 4)])
def test_a_batch_in_parts_is_a_step_on_the_whole(count, parts, frozen):
    """Loss, parameters, proxies and memory, over two SGD steps."""
    devices = mesh.make_mesh(jax.devices()[:count])
    run = Setup(
        terms=KEEPING, frozen_bn=True, devices=devices, parts=parts, **SMALL
    ).run
    expected = frozen.start()
    state = jax.device_put(expected, mesh.replicated(devices))
    for seed in (0, 1):
        expected, whole = frozen.run(expected, images(seed=seed), KEY)
        batch = mesh.global_batch(devices, images(seed=seed))
        state, metrics = run(state, batch, KEY)
        for name, (value, _) in whole.items():
            assert float(metrics[name][0]) == pytest.approx(float(value), rel=1e-5)
    assert_near(state, expected)


def test_nothing_moves_from_the_first_number_that_is_none_on(setup, start):
    """So that what is saved later, or looked into, is the last good state."""
    state, _ = setup.run(start, images(seed=0), KEY)
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf * (np.nan if path[-1].key == "scale" else 1),
        state.params,
    )
    good = state.replace(params=params)
    state, metrics = setup.run(good, images(seed=1), KEY)
    assert metrics["finite"][0] == 0
    assert state.step == -1 - 1
    chex.assert_trees_all_equal(state.replace(step=good.step), good)
    again, metrics = setup.run(state, images(seed=2), KEY)
    assert metrics["finite"][0] == 0
    chex.assert_trees_all_equal(again, state)
