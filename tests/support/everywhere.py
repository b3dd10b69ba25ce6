"""Ten steps with any objective on any devices and hosts, and all that came of them.

    python tests/support/everywhere.py OUT.npz VARIANT ...

trains each variant on all devices of all hosts (see `connection.connect`) and writes
what host i saw to OUT.i.npz.
"""

import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from metricjax.config import default_config, terms
from metricjax.config.parsing import from_config_dict
from metricjax.data import datasets, pipeline
from metricjax.data.datasets import Dataset, Split
from metricjax.runtime import connection, mesh
from metricjax.training.run import Run

STEPS = 10
# Variant -> the losses, and other settings.
# What is not brought to unit length grows, and rounding errors with it.
PAIRS = {"instances_per_class": 2, "optimizer.learning_rate": 0.001}
HIERARCHY = {"warmup": 3, "every": 4}
VARIANTS = {
    "contrastive": ({"contrastive": {}}, {}),
    "contrastive, memory": (
        {"contrastive": {"reduction": "nonzero"}},
        {"objective.memory.size": 40, "objective.memory.start_step": 2},
    ),
    "triplet, hard": ({"triplet": {"margin": 0.3}}, {}),
    "triplet, all": ({"triplet": {"mining": "all"}}, {}),
    "triplet, semihard, memory": (
        {"triplet": {"mining": "semihard"}},
        {"objective.memory.size": 40},
    ),
    "n_pair": ({"n_pair": {"l2_weight": 0.01}}, PAIRS),
    "lifted_structure": ({"lifted_structure": {}}, {}),
    "multi_similarity": ({"multi_similarity": {"beta": 10.0}}, {}),
    "multi_similarity, blocks": (
        {"multi_similarity": {"beta": 10.0}},
        {"objective.block_size": 2},
    ),
    "proxy_nca": ({"proxy_nca": {}}, {}),
    "proxy_anchor": ({"proxy_anchor": {"scale": 8.0}}, {"sampler": "images"}),
    "hierarchical_proxy, k-means": (
        {"hierarchical_proxy": {"scale": 8.0, "clusters": (3,), **HIERARCHY}},
        {},
    ),
    "hierarchical_proxy, categories": (
        {
            "hierarchical_proxy": {
                "base": "proxy_nca", "hierarchy": "category", "warmup": 3
            }
        },
        {"sampler": "categories", "categories_per_batch": 2},
    ),
    "ee_triplet": ({"ee_triplet": {"margin": 0.3}}, {}),
    "ee_hphn_triplet": ({"ee_hphn_triplet": {"margin": 0.3}}, {"sampler": "distinct"}),
    "ee_n_pair": ({"ee_n_pair": {"l2_weight": 0.01}}, PAIRS),
    "ee_lifted_structure": ({"ee_lifted_structure": {}}, {}),
    "ee_multi_similarity": ({"ee_multi_similarity": {"beta": 10.0}}, {}),
    "softmax and triplet, CGD": (
        {"softmax": {"label_smoothing": 0.1}, "triplet": {"soft": True}},
        {"model.descriptors": "SG"},
    ),
    "contrastive and divergence, ABE": (
        {"contrastive": {"among": "adjacent"}, "divergence": {}},
        {"seed": 1, "sampler": "pairs", "model.head": "abe", "model.learners": 2},
    ),
    "multi_similarity in micro-batches": (
        {"multi_similarity": {"beta": 10.0}},
        {"micro_batch_size": 8},
    ),
}  # fmt: skip
# So many images (and such a seed) that none stands twice in a batch: the distance of an
# image to itself is the root of a rounding error, not the same on all devices.
CLASSES, IMAGES, TEST_IMAGES = 12, 400, 3


def settings(variant):
    """The settings of a variant: a small network with batch normalisation, and SGD."""
    losses, own = VARIANTS[variant]
    config = default_config()
    config.steps = STEPS
    config.batch_size = 16
    config.objective.terms = terms(**losses)
    config.data.threads = 0
    config.data.transform.recipe = "none"
    config.data.transform.flip = True
    config.data.transform.image_size = 8
    config.data.transform.channels = 1
    config.model.backbone = "convnet"
    config.model.widths = (4, 6)
    config.model.descriptors = "S"
    config.model.dim = 12
    config.evaluation.batch_size = 16
    config.optimizer.method = "sgd"
    config.optimizer.learning_rate = 0.005
    config.optimizer.group_rates.proxies = 2.0
    for name, value in own.items():
        *groups, last = name.split(".")
        place = config
        for group in groups:
            place = place[group]
        place[last] = value
    return from_config_dict(config)


def patterns(classes, images, seed):
    """Class-dependent pictures under noise, of which three classes are a category."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), images)
    clean = rng.integers(0, 256, (classes, 8, 8, 1))
    noisy = clean[labels] + rng.normal(0, 60, (len(labels), 8, 8, 1))
    pictures = np.clip(noisy, 0, 255).astype(np.uint8)
    return Split(
        labels,
        [f"class {label}" for label in range(classes)],
        [f"{index}.png" for index in range(len(labels))],
        pictures.__getitem__,
        categories=labels // 3,
        category_names=[f"category {c}" for c in range(-(-classes // 3))],
    )


def toy(*_, **__):
    """A data set whose test images no number of devices divides."""
    return Dataset("toy", patterns(CLASSES, IMAGES, 0), patterns(7, TEST_IMAGES, 1))


def trained(variant, devices=None):
    """What ten steps saw and made, as numpy arrays by name.

    Args:
      variant: of `VARIANTS`.
      devices: to train on; None: all of all hosts.

    Returns:
      `sampler/STEP`, this host's rows of the batch; `metrics/STEP/NAME`; `gradient/...`
      of the first step, which is what SGD keeps of it; `state/...` after the last;
      `retrieval/NAME`, how the test images are found.
    """
    devices = mesh.make_mesh(devices)
    with (
        tempfile.TemporaryDirectory() as scratch,
        mock.patch.object(datasets, "open_dataset", toy),
        mock.patch.object(mesh, "make_mesh", lambda: devices),
    ):
        run = Run.open(settings(variant), Path(scratch) / "none")
    found, state = {}, run.init_state()
    program, _ = run.compile_train_step()
    hierarchy = run.config.objective.hierarchy
    with pipeline.train_batches(
        run.train, run.sampler, run.transform, seed=run.config.seed, start_step=0,
        num_steps=STEPS, process_index=jax.process_index(),
        process_count=jax.process_count(), threads=0,
    ) as batches:  # fmt: skip
        for step, batch in enumerate(batches):
            if hierarchy and hierarchy.due(step):
                state = run.regroup(state, step)
            found[f"sampler/{step}"] = batch["indices"]
            batch = {name: batch[name] for name in ("images", "labels")}
            batch = mesh.global_batch(run.programs.mesh, batch)
            state, metrics = program(state, batch, run.programs.root_key)
            for name, (total, count) in mesh.to_host(metrics).items():
                found[f"metrics/{step}/{name}"] = total / max(count, 1)
            if step == 0:
                found |= _named("gradient", state.opt_state)
    # Not the momentum, a sum of gradients that cancel: the parameters are all its sums.
    found |= _named("state", state.replace(opt_state=()))
    for name, value in run.evaluate(state.variables, run.dataset.test, 0).items():
        if isinstance(value, float):
            found[f"retrieval/{name}"] = np.float64(value)
    return found


def _named(group, tree):
    leaves = jax.tree_util.tree_leaves_with_path(mesh.to_host(tree))
    return {f"{group}{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}


def main(out, *variants):
    connection.connect()
    arrays = {}
    for variant in variants:
        for name, array in trained(variant).items():
            arrays[f"{variant}|{name}"] = array
    np.savez(f"{out}.{jax.process_index()}.npz", **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
