"""EE: embedding expansion on the HPHN triplet (Ko and Gu, arXiv 2003.02546).

    python -m metricjax.main --config configs/ee_googlenet.py:folder \
        --config.data.root=photos.zip --config.model.pretrained=googlenet.safetensors

Variants: `folder`, and `cub`, `cars`, `sop`, `inshop`, see configs/README.md.
The paper's other losses are `ee_triplet`, `ee_n_pair`, `ee_lifted_structure` and
`ee_multi_similarity`, such as
`--config.objective.terms.ee_multi_similarity.weight=1
--config.objective.terms.ee_hphn_triplet.weight=0 --config.instances_per_class=2`.

The paper reports Recall@1 of 51.7 (CUB), 71.6 (Cars) and 77.2 (SOP) for this loss, and
57.4, 75.8 and 78.1 for multi-similarity with expansion. From the authors' code:
pooling, a linear layer with bias to dimension 512, Adam at 1e-4 with weight decay 5e-4,
batches of 128 with 32 images per class (here for CUB and Cars; 2 for SOP and In-Shop, 4
for a folder), images of 227 either squashed to that size or cropped from 255, two
points per segment, margin 1e-5. Its network has batch normalisation (`googlenet_bn`).
Inputs are x / 127.5 - 1, as torchvision's weights for it require; the authors used
ImageNet's mean and standard deviation. 98 classes x 32 images / 128 are the 24 steps
that they call an epoch; they train 4,000 of them, this config a tenth of that.
"""

from metricjax.config import (
    DATA_VARIANTS,
    choose_variant,
    default_config,
    terms,
    use_data,
)


def get_config(variant="folder"):
    choose_variant("ee_googlenet", variant, DATA_VARIANTS)
    config = default_config()
    use_data(config, variant)
    config.batch_size = 128
    # Unlike the authors' sampler, this one never pairs an image with itself.
    config.sampler = "distinct"
    # Smaller classes are left out; those of SOP and In-Shop are small.
    config.instances_per_class = {"sop": 2, "inshop": 2, "folder": 4}.get(variant, 32)
    config.steps = 9600
    config.eval_every = config.checkpoint_every = 480

    config.data.transform.recipe = "resize_or_crop"
    config.data.transform.image_size = 227
    config.data.transform.normalization = "half"

    config.model.backbone = "googlenet_bn"
    config.model.last_stride = 2
    config.model.descriptors = "S"
    config.model.dim = 512
    config.model.use_bias = True

    others = ("triplet", "n_pair", "lifted_structure", "multi_similarity")
    config.objective.terms = terms(
        ee_hphn_triplet={"points": 2, "margin": 1e-5},
        **{f"ee_{name}": {"weight": 0.0} for name in others},
    )

    config.optimizer.method = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "step"
    config.optimizer.step_boundaries = (960, 1920, 2880, 3840)
    config.optimizer.step_decay = 0.5
    config.evaluation.batch_size = 128
    return config
