"""Proxy-NCA and Proxy-Anchor: values, gradients, torch, blocks, devices, bad input."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_proxies

from metricjax.errors import InputError
from metricjax.losses import Tiling
from metricjax.losses._kernels import numerics
from metricjax.losses.proxies import check_labels, proxy_anchor, proxy_nca
from metricjax.runtime import mesh

LABELS = np.array([6, 6, 6, 1, 1, 3, 3, 3, 3, 0, 1, 2])  # of 8: 4, 5, 7 are absent
CLASSES = 8
LOSSES = {"nca": proxy_nca, "anchor": proxy_anchor}
SLOW = {"nca": reference_proxies.proxy_nca, "anchor": reference_proxies.proxy_anchor}
VARIANTS = {
    "nca": ("nca", {}),
    "nca, first form": ("nca", {"include_positive": False}),
    "nca, warm": ("nca", {"temperature": 1.0}),
    "nca, margin": ("nca", {"temperature": 1 / 8, "margin": 0.1}),
    "nca, warm first form": ("nca", {"temperature": 0.5, "include_positive": False}),
    "anchor": ("anchor", {}),
    "anchor, soft": ("anchor", {"scale": 4.0, "margin": 0.0}),
    "anchor, wide": ("anchor", {"scale": 16.0, "margin": 0.5}),
}
BLOCKS = [None, 5]


def rows(count=12, width=6, seed=0):
    """Unit rows [count, width], float64."""
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    return reference.l2_normalize(drawn)


def drawn_proxies(count=CLASSES, width=6, seed=1):
    """Proxies of any length [count, width], float64."""
    return 0.7 * np.random.default_rng(seed).normal(size=(count, width))


def f32(array):
    return jnp.asarray(array, jnp.float32)


@partial(
    jax.jit,
    static_argnames=(
        "name", "temperature", "include_positive", "margin", "scale", "tiling"
    ),
)  # fmt: skip
def value_and_gradient(name, embeddings, labels, proxies, **options):
    """The value, and the gradients to embeddings and proxies."""
    return jax.value_and_grad(LOSSES[name], argnums=(0, 2))(
        embeddings, labels, proxies, **options
    )


def slow_gradients(slow, embeddings, proxies):
    return (
        reference.gradient(lambda x: slow(x, proxies), embeddings),
        reference.gradient(lambda p: slow(embeddings, p), proxies),
    )


def close(got, expected, rtol=1e-5):
    """Equal within `rtol` of the largest entry: single entries may cancel out."""
    expected = np.asarray(expected, np.float64)
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=rtol * scale)


def all_finite(*arrays):
    return all(np.isfinite(np.asarray(array, np.float32)).all() for array in arrays)


@pytest.mark.parametrize(
    ("variant", "block_size"),
    [*((name, None) for name in VARIANTS), ("nca, first form", 5), ("anchor, wide", 5)],
)
def test_value_and_gradient_equal_reference(variant, block_size):
    name, options = VARIANTS[variant]
    embeddings, proxies = rows(), drawn_proxies()
    value, slopes = value_and_gradient(
        name,
        f32(embeddings),
        LABELS,
        f32(proxies),
        tiling=Tiling(block_size),
        **options,
    )

    def slow(x, p):
        return SLOW[name](x, LABELS, p, **options)

    assert value.shape == () and value.dtype == jnp.float32
    assert value == pytest.approx(slow(embeddings, proxies), rel=1e-5)
    for got, expected in zip(
        slopes, slow_gradients(slow, embeddings, proxies), strict=True
    ):
        close(got, expected)


@pytest.mark.parametrize("variant", ["nca", "nca, first form", "anchor"])
def test_embeddings_need_not_be_unit(variant):
    """They are taken as they are; |x|^2 leaves the quotient of Proxy-NCA."""
    name, options = VARIANTS[variant]
    embeddings, proxies = 0.5 * drawn_proxies(12, seed=2), drawn_proxies()
    value, slopes = value_and_gradient(
        name, f32(embeddings), LABELS, f32(proxies), **options
    )

    def slow(x, p):
        return SLOW[name](x, LABELS, p, **options)

    assert value == pytest.approx(slow(embeddings, proxies), rel=1e-5)
    close(slopes[0], slow_gradients(slow, embeddings, proxies)[0])


@pytest.mark.parametrize("block_size", [1, 3, 5, 11, 100])
@pytest.mark.parametrize("name", LOSSES)
def test_blocks_equal_dense(name, block_size):
    """Sizes that divide neither the 12 images nor the 8 proxies too."""
    args = f32(rows()), LABELS, f32(drawn_proxies())
    dense, dense_slopes = value_and_gradient(name, *args)
    value, slopes = value_and_gradient(name, *args, tiling=Tiling(block_size))
    assert value == pytest.approx(float(dense), rel=1e-6)
    for got, expected in zip(slopes, dense_slopes, strict=True):
        close(got, expected, 2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_blocks_bound_the_memory(name):
    """Neither [b, c] nor [c, b] exists in blocks of 3."""
    args = f32(rows(48)), np.arange(48) % 40, f32(drawn_proxies(40))
    for block_size in (None, 3):
        program = value_and_gradient.lower(
            name, *args, tiling=Tiling(block_size)
        ).as_text()
        whole = "tensor<48x40xf32>" in program or "tensor<40x48xf32>" in program
        assert whole == (block_size is None)


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize(
    "count", [4, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)
@pytest.mark.parametrize("name", LOSSES)
def test_devices_equal_one_under_sgd(name, count, block_size):
    """The gradient's scale too: an average over devices would be n times smaller."""
    embeddings = rows(16, seed=5).astype(np.float32)
    labels, proxies = np.repeat([3, 1, 0, 5], 4), f32(drawn_proxies(9))
    devices = mesh.make_mesh(jax.devices()[:count])
    batch = mesh.global_batch(devices, {"e": embeddings, "y": labels})
    everywhere = jax.device_put(proxies, mesh.replicated(devices))
    tiling = Tiling(block_size, devices if block_size else None)
    value, slopes = value_and_gradient(
        name, batch["e"], batch["y"], everywhere, tiling=tiling
    )
    one, slopes_of_one = value_and_gradient(name, f32(embeddings), labels, proxies)
    assert value == pytest.approx(float(one), rel=1e-6)
    for got, expected in zip(slopes, slopes_of_one, strict=True):
        close(got, expected, 2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_length_of_a_proxy_does_not_matter(name):
    """Nor does the gradient pull along it."""
    embeddings, proxies = f32(rows()), f32(drawn_proxies())
    lengths = jnp.linspace(0.1, 30.0, CLASSES)[:, None]
    value, (_, to_proxies) = value_and_gradient(name, embeddings, LABELS, proxies)
    scaled, _ = value_and_gradient(name, embeddings, LABELS, lengths * proxies)
    assert value == pytest.approx(float(scaled), rel=1e-5)
    along = np.sum(np.asarray(to_proxies * proxies), axis=1)
    assert np.abs(along).max() < 1e-5 * np.abs(to_proxies).max()


def test_proxy_nca_is_a_softmax_of_twice_the_cosine():
    embeddings, proxies = rows(), drawn_proxies()
    scores = 18.0 * embeddings @ reference.l2_normalize(proxies).T
    expected = reference.softmax_cross_entropy(scores, LABELS)
    value, _ = value_and_gradient("nca", f32(embeddings), LABELS, f32(proxies))
    assert value == pytest.approx(expected, rel=1e-5)


def test_first_form_of_proxy_nca_by_hand():
    """At its proxy, an image gains the distance to the only other one."""
    proxies = f32([[2.0, 0.0], [0.0, 5.0]])
    embeddings = f32([[1.0, 0.0]])
    value, _ = value_and_gradient(
        "nca", embeddings, np.array([0]), proxies, temperature=1.0,
        include_positive=False,
    )  # fmt: skip
    assert value == pytest.approx(-2.0)


def test_proxy_anchor_by_hand():
    """Positives over the 2 classes present, negatives over all 3."""
    proxies = f32([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    embeddings = f32([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    value, _ = value_and_gradient(
        "anchor", embeddings, np.array([0, 0, 1]), proxies, margin=0.5, scale=2.0
    )
    pull = np.log(1 + 2 * np.exp(-1)) + np.log(1 + np.exp(-1))
    push = np.log(1 + np.exp(1)) + np.log(1 + 2 * np.exp(1))
    push += np.log(1 + 2 * np.exp(-1) + np.exp(1))
    assert value == pytest.approx(pull / 2 + push / 3, rel=1e-6)


@pytest.mark.parametrize("variant", ["nca", "nca, first form", "anchor, soft"])
def test_equals_plain_torch(variant):
    """Against dense formulas in float64 and the gradients of both inputs."""
    torch = pytest.importorskip("torch")
    name, options = VARIANTS[variant]
    embeddings, proxies = rows(24, 32, seed=7), drawn_proxies(10, 32, seed=8)
    labels = np.repeat([0, 2, 3, 9, 5, 7], 4)
    x = torch.tensor(embeddings, requires_grad=True)
    p = torch.tensor(proxies, requires_grad=True)
    unit = torch.nn.functional.normalize(p)
    own = torch.nn.functional.one_hot(torch.tensor(labels), 10).bool()
    if name == "nca":
        distances = (x[:, None] - unit[None]).pow(2).sum(-1)
        logits = -distances / options.get("temperature", 1 / 9)
        compared = logits
        if not options.get("include_positive", True):
            compared = logits.masked_fill(own, -torch.inf)
        theirs = (compared.logsumexp(1) - logits[own]).mean()
    else:
        margin, scale = options.get("margin", 0.1), options.get("scale", 32.0)
        similarities = x @ unit.T
        pull = torch.where(own, torch.exp(-scale * (similarities - margin)), 0.0)
        push = torch.where(own, 0.0, torch.exp(scale * (similarities + margin)))
        theirs = pull.sum(0).log1p().sum() / own.any(0).sum()
        theirs = theirs + push.sum(0).log1p().mean()
    theirs.backward()
    value, slopes = value_and_gradient(
        name, f32(embeddings), labels, f32(proxies), **options
    )
    assert value == pytest.approx(theirs.item(), rel=1e-5)
    close(slopes[0], x.grad.numpy())
    close(slopes[1], p.grad.numpy())


@pytest.mark.parametrize("name", LOSSES)
def test_equals_pytorch_metric_learning(name):
    """Conventions aligned: theirs makes the embeddings unit too (so does the test
    here), takes the temperature as softmax_scale = 1 / T, and has the own proxy in the
    denominator; Proxy-Anchor is the same as it stands.
    """
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("pytorch_metric_learning.losses")
    embeddings, proxies = drawn_proxies(24, 32, seed=7), drawn_proxies(10, 32, seed=8)
    labels = np.repeat([0, 2, 3, 9, 5, 7], 4)
    if name == "nca":
        loss = theirs.ProxyNCALoss(10, 32, softmax_scale=9.0)
    else:
        loss = theirs.ProxyAnchorLoss(10, 32, margin=0.1, alpha=32)
    loss.proxies.data = torch.tensor(proxies)
    x = torch.tensor(embeddings, requires_grad=True)
    expected = loss(x, torch.tensor(labels))
    expected.backward()

    @jax.jit
    def ours(x, p):
        return LOSSES[name](numerics.unit(x), labels, p)

    value, slopes = jax.value_and_grad(ours, argnums=(0, 1))(
        f32(embeddings), f32(proxies)
    )
    assert value == pytest.approx(expected.item(), rel=1e-5)
    close(slopes[0], x.grad.numpy())
    close(slopes[1], loss.proxies.grad.numpy())


@pytest.mark.parametrize("dtype", [np.int8, np.uint32, np.int64])
@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_any_integer_type(name, dtype):
    """More proxies than the type can count do not wrap around."""
    embeddings, proxies = f32(rows()), f32(drawn_proxies(300))
    expected = LOSSES[name](embeddings, LABELS.astype(np.int32), proxies)
    got = LOSSES[name](embeddings, LABELS.astype(dtype), proxies)
    assert got == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("name", LOSSES)
def test_one_class_only(name, block_size):
    embeddings, proxies, labels = rows(), drawn_proxies(), np.full(12, 4)
    value, slopes = value_and_gradient(
        name, f32(embeddings), labels, f32(proxies), tiling=Tiling(block_size)
    )
    expected = SLOW[name](embeddings, labels, proxies)
    assert value == pytest.approx(expected, rel=1e-5) and all_finite(*slopes)


@pytest.mark.parametrize("name", LOSSES)
def test_one_proxy(name):
    """A softmax over one is certain; Proxy-Anchor still pulls, but has no negatives."""
    embeddings, proxies, labels = rows(), drawn_proxies(1), np.zeros(12, int)
    value, slopes = value_and_gradient(name, f32(embeddings), labels, f32(proxies))
    if name == "nca":
        assert value == pytest.approx(0.0, abs=1e-6)
        assert max(np.abs(s).max() for s in slopes) < 1e-5
    else:
        expected = SLOW[name](embeddings, labels, proxies)
        assert value == pytest.approx(expected, rel=1e-5) and all_finite(*slopes)


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("variant", ["nca", "nca, first form", "anchor"])
def test_all_images_the_same(variant, block_size):
    name, options = VARIANTS[variant]
    same, proxies = np.repeat(rows(1), 12, axis=0), drawn_proxies()
    value, slopes = value_and_gradient(
        name, f32(same), LABELS, f32(proxies), tiling=Tiling(block_size), **options
    )
    expected = SLOW[name](same, LABELS, proxies, **options)
    assert value == pytest.approx(expected, rel=1e-5) and all_finite(*slopes)


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("variant", ["nca", "nca, first form", "anchor"])
def test_zero_vectors(variant, block_size):
    name, options = VARIANTS[variant]
    for proxies in (jnp.zeros((CLASSES, 6)), f32(drawn_proxies())):
        value, slopes = value_and_gradient(
            name, jnp.zeros((12, 6)), LABELS, proxies, tiling=Tiling(block_size),
            **options,
        )  # fmt: skip
        assert all_finite(value, *slopes)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_settings_stay_finite(name):
    """exp(1e4) is far beyond float32."""
    options = {"temperature": 1e-4} if name == "nca" else {"scale": 1e4}
    embeddings, proxies = rows(), drawn_proxies()
    value, slopes = value_and_gradient(
        name, f32(embeddings), LABELS, f32(proxies), **options
    )
    assert np.isfinite(value) and value > 100 and all_finite(*slopes)


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("name", LOSSES)
def test_nan_is_not_hidden(name, block_size):
    embeddings, proxies = f32(rows()), f32(drawn_proxies())
    spoilt = [
        (embeddings.at[0, 0].set(jnp.nan), proxies),
        (embeddings, proxies.at[5, 2].set(jnp.nan)),
    ]
    for x, p in spoilt:
        value, slopes = value_and_gradient(
            name, x, LABELS, p, tiling=Tiling(block_size)
        )
        assert np.isnan(value) and not all_finite(*slopes)


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_input(name, block_size):
    embeddings = f32(rows()).astype(jnp.bfloat16)
    proxies = f32(drawn_proxies()).astype(jnp.bfloat16)
    value, slopes = value_and_gradient(
        name, embeddings, LABELS, proxies, tiling=Tiling(block_size)
    )
    exact = np.asarray(embeddings, np.float64), np.asarray(proxies, np.float64)

    def slow(x, p):
        return SLOW[name](x, LABELS, p)

    assert value.dtype == jnp.float32
    assert value == pytest.approx(slow(*exact), rel=1e-5)
    for got, expected in zip(slopes, slow_gradients(slow, *exact), strict=True):
        assert got.dtype == jnp.bfloat16  # rounded once, to 8 bits
        close(got.astype(jnp.float32), expected, 2**-8)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_products_stay_near(name):
    args = f32(rows(width=64)), LABELS, f32(drawn_proxies(width=64))
    exact, _ = value_and_gradient(name, *args)
    near, _ = value_and_gradient(name, *args, tiling=Tiling(dtype=jnp.bfloat16))
    assert near == pytest.approx(float(exact), rel=2e-2)
    assert near != exact


@pytest.mark.parametrize("bad", [-1, CLASSES, 2**31 - 1])
def test_labels_out_of_range_where_only_the_program_knows(bad):
    """Under jit they cannot raise: finite, and never taken for another class."""
    labels = np.append(LABELS, bad)
    embeddings, proxies = f32(rows(13)), f32(drawn_proxies())
    value, slopes = value_and_gradient("nca", embeddings, labels, proxies)
    without, _ = value_and_gradient("nca", embeddings[:-1], LABELS, proxies)
    assert value == pytest.approx(float(without), rel=1e-6)
    assert np.all(slopes[0][-1] == 0)
    value, slopes = value_and_gradient("anchor", embeddings, labels, proxies)
    expected = reference_proxies.proxy_anchor(rows(13), labels, drawn_proxies())
    assert value == pytest.approx(expected, rel=1e-5) and all_finite(*slopes)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_in_range_gives_nothing_to_pull(name):
    value, slopes = value_and_gradient(
        name, f32(rows()), np.full(12, -1), f32(drawn_proxies())
    )
    assert all_finite(value, *slopes)
    if name == "nca":
        assert value == 0 and all(np.all(s == 0) for s in slopes)


@pytest.mark.parametrize(
    ("sentence", "labels", "proxies"),
    [
        (r"0\.\.7, as there are 8 proxies, but there is a 8", LABELS + 2, None),
        ("there is a -1", LABELS - 1, None),
        ("there is a -1", jnp.asarray(LABELS - 1), None),
        ("12 embeddings but 11 labels", LABELS[1:], None),
        ("must be integers", LABELS.astype(np.float32), None),
        (r"int32 of shape \[8, 6\]", LABELS, np.ones((8, 6), np.int32)),
        (r"float32 of shape \[8\]", LABELS, np.ones(8, np.float32)),
        ("6 and 5 numbers", LABELS, np.ones((8, 5), np.float32)),
        ("at least one proxy", LABELS, np.ones((0, 6), np.float32)),
    ],
)
@pytest.mark.parametrize("name", LOSSES)
def test_entry_checks(name, sentence, labels, proxies):
    proxies = f32(drawn_proxies()) if proxies is None else jnp.asarray(proxies)
    with pytest.raises(InputError, match=sentence):
        LOSSES[name](f32(rows()), labels, proxies)


@pytest.mark.parametrize(
    ("sentence", "loss", "options"),
    [
        ("temperature must be above 0, but it is 0", proxy_nca, {"temperature": 0.0}),
        ("temperature must be above 0, .* -1", proxy_nca, {"temperature": -1.0}),
        ("margin must be 0 or more, but it is -0.1", proxy_anchor, {"margin": -0.1}),
        ("margin must be 0 or more, but it is -0.2", proxy_nca, {"margin": -0.2}),
        ("scale must be above 0, but it is 0", proxy_anchor, {"scale": 0.0}),
    ],
)
def test_settings_out_of_range(sentence, loss, options):
    with pytest.raises(InputError, match=sentence):
        loss(f32(rows()), LABELS, f32(drawn_proxies()), **options)


def test_first_form_needs_another_proxy():
    with pytest.raises(InputError, match="at least 2 proxies, but there is 1"):
        proxy_nca(
            f32(rows()), np.zeros(12, int), f32(drawn_proxies(1)),
            include_positive=False,
        )  # fmt: skip


def test_check_labels_looks_at_values_only_where_there_are_some():
    check_labels(np.array([0, 7]), 8, "proxies")
    check_labels(np.zeros(0, int), 8, "proxies")
    jax.jit(lambda labels: check_labels(labels, 8, "proxies"))(np.array([99]))
    with pytest.raises(InputError, match=r"0\.\.7, as there are 8 proxies"):
        check_labels(np.array([0, 8]), 8, "proxies")
