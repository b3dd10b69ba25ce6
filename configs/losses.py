"""Each loss alone on letters drawn from typefaces, as configs/quickstart.py draws them.

    python -m metricjax.main --config configs/losses.py:multi_similarity

Variants: contrastive, contrastive_memory (also against the last 2,048 images), triplet,
triplet_all, triplet_semihard, n_pair, lifted_structure, multi_similarity, proxy_nca,
proxy_anchor, hierarchical_proxy (Proxy-Anchor, groups by k-means),
hierarchical_proxy_categories (Proxy-NCA, groups are the scripts), softmax, and with
embedding expansion ee_triplet, ee_hphn_triplet, ee_n_pair, ee_lifted_structure,
ee_multi_similarity. They show how losses behave, not how good they can get: all
share one learning rate, except the N-pair losses, which need a lower one.
"""

from metricjax.config import choose_variant, default_config, terms

# Variant -> the loss and its settings.
_TERMS = {
    "contrastive": {"contrastive": {}},
    "contrastive_memory": {"contrastive": {}},
    "triplet": {"triplet": {"margin": 0.2}},
    "triplet_all": {"triplet": {"margin": 0.2, "mining": "all"}},
    "triplet_semihard": {"triplet": {"margin": 0.2, "mining": "semihard"}},
    "n_pair": {"n_pair": {"l2_weight": 0.001}},
    "lifted_structure": {"lifted_structure": {}},
    "multi_similarity": {"multi_similarity": {}},
    "proxy_nca": {"proxy_nca": {}},
    # At the paper's scale 32 Proxy-Anchor learns little from scratch in so few steps.
    "proxy_anchor": {"proxy_anchor": {"scale": 16.0}},
    "hierarchical_proxy": {
        "hierarchical_proxy": {
            "scale": 16.0,
            "clusters": (40,),
            "warmup": 100,
            "every": 50,
        }
    },
    "hierarchical_proxy_categories": {
        "hierarchical_proxy": {
            "base": "proxy_nca",
            "hierarchy": "category",
            "warmup": 100,
        }
    },
    "softmax": {"softmax": {"temperature": 2.0, "label_smoothing": 0.1}},
    "ee_triplet": {"ee_triplet": {"margin": 0.2}},
    "ee_hphn_triplet": {"ee_hphn_triplet": {"margin": 0.2}},
    "ee_n_pair": {"ee_n_pair": {"l2_weight": 0.001}},
    "ee_lifted_structure": {"ee_lifted_structure": {}},
    "ee_multi_similarity": {"ee_multi_similarity": {}},
}
VARIANTS = tuple(_TERMS)


def get_config(variant="multi_similarity"):
    choose_variant("losses", variant, VARIANTS)
    config = default_config()
    config.steps = 300
    config.batch_size = 128
    config.instances_per_class = 4
    config.eval_every = 100
    config.checkpoint_every = 100

    config.data.name = "glyphs"
    config.data.transform.recipe = "affine"
    config.data.transform.image_size = 32
    config.data.transform.channels = 1

    config.model.backbone = "convnet"
    config.model.widths = (32, 64, 128)
    config.model.whole = 512
    config.model.descriptors = "S"
    config.model.dim = 128

    config.objective.terms = terms(**_TERMS[variant])
    if variant == "contrastive_memory":
        config.objective.memory.size = 2048
        config.objective.memory.start_step = 50

    config.optimizer.method = "adamw"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 1e-4
    if variant.endswith("n_pair"):
        # N-pair uses two images per class.
        config.instances_per_class = 2
        config.optimizer.learning_rate = 3e-3
    return config
