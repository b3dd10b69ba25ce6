"""ABE and M-heads: the paper's counts, learner by learner, invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax import losses
from metricjax.errors import InputError
from metricjax.models import cost, layers, pooling
from metricjax.models.abe import ABE, MHeads
from metricjax.models.convnet import ConvNet
from metricjax.models.googlenet import GoogLeNet

SMALL = ConvNet(widths=(8, 12, 16), depth=1)


# Table 1 of the paper (arXiv 1804.00382): parameters / 1e7, multiply-adds / 1e9.
@pytest.mark.parametrize(
    ("module", "parameters", "giga"),
    [
        (ABE(1, 512), 0.97, 2.21),
        (ABE(2, 512), 0.98, 2.96),
        (ABE(4, 512), 1.05, 4.46),
        (ABE(8, 512), 1.20, 7.46),
        (ABE(1, 64), 0.92, 2.21),
        (ABE(2, 128), 0.96, 2.96),
        (ABE(4, 256), 1.04, 4.46),
        (MHeads(1, 512), 0.65, 1.58),
        (MHeads(2, 512), 1.18, 2.25),
        (MHeads(4, 512), 2.24, 3.60),
        (MHeads(8, 512), 4.36, 6.28),
    ],
    ids=lambda value: getattr(value, "learners", None) and f"{type(value).__name__}",
)
def test_counts_of_table_1(module, parameters, giga):
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    counted = cost.count_parameters(variables) / 1e7
    assert counted == pytest.approx(parameters, abs=0.0075)
    counted = cost.multiply_adds(module.apply, variables, images) / 1e9
    assert counted == pytest.approx(giga, abs=0.0075)


def _images(seed=0, count=3):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(count, 32, 32, 3)), jnp.float32)


def _randomized(module, images, seed=1):
    """Random values for everything, so that masks and learners differ."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            values /= np.sqrt(max(1, np.prod(leaf.shape[-4:-1])) / 2)
        elif path[-1].key in ("scale", "var"):
            values = 1 + 0.3 * np.tanh(values)
        return jnp.asarray(values, jnp.float32)

    return jax.tree.map_with_path(draw, shapes)


def _one_learner(variables, images, learner):
    """B_m(x) = l2(G(S(x) o A_m(S(x)))) for one m, part by part."""
    params, statistics = variables["params"], variables["batch_stats"]

    def part(blocks, features, *names, keep_size=False):
        chosen = {"params": params["backbone"], "batch_stats": statistics["backbone"]}
        for name in names:
            chosen = {kind: tree[name] for kind, tree in chosen.items()}
        network = SMALL.clone(only=blocks, keep_size=keep_size)
        return network.apply(chosen, features)

    blocks = SMALL.blocks
    cut = blocks.index("stage0") + 1
    shared = part(blocks[:cut], images, "shared")
    trunk = part(blocks[cut:], shared, "attention", keep_size=True)
    channels = shared.shape[-1]
    own = slice(learner * channels, (learner + 1) * channels)
    logits = trunk @ params["mask"]["kernel"][:, own] + params["mask"]["bias"][own]
    masked = shared / (1 + jnp.exp(-logits))
    features = part(blocks[cut:], masked, "branch", "network")
    linear = params["fc"]
    return layers.l2_normalize(
        pooling.spoc(features) @ linear["kernel"] + linear["bias"]
    )


def test_abe_is_its_definition_learner_by_learner():
    module, images = ABE(4, 24, SMALL, branch_after="stage0"), _images()
    variables = _randomized(module, images)
    output = jax.jit(module.apply)(variables, images)
    for learner in range(4):
        expected = _one_learner(variables, images, learner)
        np.testing.assert_allclose(
            output.learners[:, learner], expected, rtol=1e-4, atol=1e-5
        )
    assert np.ptp(np.asarray(output.learners), axis=1).max() > 0.1
    joined = output.learners.reshape(3, 24) / 2
    np.testing.assert_allclose(output.embedding, joined, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(output.embedding**2, axis=1), 1, atol=1e-5)


def test_heads_are_networks_of_their_own():
    module, images = MHeads(3, 12, SMALL), _images()
    variables = _randomized(module, images)
    together = jax.jit(module.apply)(variables, images)
    single = MHeads(1, 4, SMALL)
    for head in range(3):

        def of_head(path, leaf, head=head):
            shared = any(getattr(key, "key", None) == "shared" for key in path)
            return leaf if shared else leaf[head : head + 1]

        own = jax.tree.map_with_path(of_head, variables)
        expected = single.apply(own, images)
        np.testing.assert_allclose(
            together.learners[:, head], expected.embedding, rtol=1e-4, atol=1e-5
        )


def test_open_masks_make_all_learners_the_plain_network():
    module, images = ABE(4, 8, SMALL), _images()
    variables = _randomized(module, images)
    masks = variables["params"]["mask"]
    variables["params"]["mask"] = {
        "kernel": jnp.zeros_like(masks["kernel"]),
        "bias": jnp.full_like(masks["bias"], 100.0),
    }
    learners = module.apply(variables, images).learners
    np.testing.assert_allclose(learners, learners[:, :1].repeat(4, 1), atol=1e-6)
    pairs = 4 * 3 / 2
    np.testing.assert_allclose(losses.divergence(learners), pairs, rtol=1e-6)


def test_exchanged_masks_exchange_learners():
    module, images = ABE(3, 12, SMALL), _images()
    variables = _randomized(module, images)
    order = np.array([2, 0, 1])
    masks = variables["params"]["mask"]

    def reorder(leaf):
        split = leaf.reshape(*leaf.shape[:-1], 3, -1)
        return split[..., order, :].reshape(leaf.shape)

    before = module.apply(variables, images)
    variables["params"]["mask"] = jax.tree.map(reorder, masks)
    after = module.apply(variables, images)
    np.testing.assert_allclose(after.learners, before.learners[:, order], atol=1e-6)
    np.testing.assert_allclose(
        after.embedding @ after.embedding.T,
        before.embedding @ before.embedding.T,
        atol=1e-5,
    )


def test_masks_can_be_looked_at():
    module, images = ABE(4, 8, SMALL), _images()
    variables = _randomized(module, images)
    _, seen = module.apply(variables, images, mutable=["intermediates"])
    (masks,) = seen["intermediates"]["masks"]
    assert masks.shape == (3, 4, 8, 8, 12)
    assert 0 <= masks.min() < masks.max() <= 1


@pytest.mark.parametrize(
    "branch_after", ["pool2", "inception3a", "pool3", "inception4b"]
)
@pytest.mark.parametrize("blocks", [1, 5, 7])
def test_ablations_of_the_paper(branch_after, blocks):
    """Fig. 7: where it branches off, and how deep the attention is."""
    module = ABE(2, 16, GoogLeNet(), branch_after, blocks)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    backbone = variables["params"]["backbone"]
    behind = [b for b in backbone["branch"]["network"] if not b.startswith("pool")]
    assert list(backbone["attention"]) == sorted(behind)[:blocks]
    assert jax.eval_shape(module.apply, variables, images).learners.shape == (2, 2, 8)


@pytest.mark.parametrize(
    ("construct", "words"),
    [
        (lambda: ABE(learners=3, dim=512), "3 learners cannot share"),
        (lambda: MHeads(learners=0, dim=512), "learners is 0"),
        (lambda: MHeads(learners=2, dim=0), "dim is 0"),
        (lambda: ABE(branch_after="pool9"), "branch_after is 'pool9'"),
        (lambda: ABE(branch_after="inception5b"), "branch_after is 'inception5b'"),
        (lambda: ABE(attention_blocks=0), "attention_blocks is 0"),
    ],
)
def test_settings_that_are_refused(construct, words):
    with pytest.raises(InputError, match=words):
        construct()
