"""HPL: hierarchical proxies on Proxy-Anchor (Yang et al., arXiv 2103.13538).

    python -m metricjax.main --config configs/hpl_resnet50.py:folder \
        --config.data.root=photos.zip --config.model.pretrained=resnet50.safetensors

Variants: `folder`, and `cub`, `cars`, `sop`, `inshop`, see configs/README.md.
On Proxy-NCA: `--config.objective.terms.hierarchical_proxy.base=proxy_nca`; groups given
by the data: `--config.objective.terms.hierarchical_proxy.hierarchy=category`.

From the paper: k-means groups of the fine proxies, weight 0.1 for the coarse level. The
number of groups, when and how often they are updated, the optimiser and the steps are
not certain; the latter follow Proxy-Anchor (arXiv 2003.13911), as do the batches of
images at random and the random-resized crops. It reports Recall@1 of 68.4 (CUB), 86.1
(Cars), 79.1 (SOP) and 91.5 (In-Shop) on BN-Inception without a hierarchy. HPL's own
numbers are not known for certain and are therefore omitted.
"""

from metricjax.config import (
    DATA_VARIANTS,
    choose_variant,
    default_config,
    terms,
    use_data,
)

# Steps: 60 epochs; groups: a tenth of the classes, and SOP's 12 kinds of products.
_STEPS = {"cub": 2000, "cars": 2700, "sop": 20000, "inshop": 8700, "folder": 2000}
_GROUPS = {"cub": 10, "cars": 10, "sop": 12, "inshop": 400, "folder": 10}


def get_config(variant="folder"):
    choose_variant("hpl_resnet50", variant, DATA_VARIANTS)
    config = default_config()
    use_data(config, variant)
    config.batch_size = 180
    config.sampler = "images"
    config.steps = _STEPS[variant]
    config.eval_every = config.checkpoint_every = config.steps // 20

    config.data.transform.recipe = "random_resized_crop"
    config.data.transform.image_size = 224

    config.model.backbone = "resnet50"
    config.model.last_stride = 2
    config.model.descriptors = "A"
    config.model.dim = 512
    config.model.use_bias = True
    config.model.frozen_bn = variant in ("cub", "cars")

    config.objective.terms = terms(
        hierarchical_proxy={
            "clusters": (_GROUPS[variant],),
            "level_weights": (1.0, 0.1),
            "warmup": config.steps // 10,
            "every": config.steps // 20,
        }
    )

    config.optimizer.method = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "step"
    config.optimizer.step_boundaries = tuple(
        int(share * config.steps) for share in (1 / 3, 2 / 3)
    )
    config.optimizer.step_decay = 0.5
    config.evaluation.batch_size = 128
    return config
