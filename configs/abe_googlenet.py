"""ABE-8 on GoogLeNet: attention-based ensemble (Kim et al., arXiv 1804.00382).

    python -m metricjax.main --config configs/abe_googlenet.py:folder \
        --config.data.root=photos.zip --config.model.pretrained=googlenet.safetensors

Variants: `folder`, and `cub`, `cars`, `sop`, `inshop`, see configs/README.md.
Other ensembles: `--config.model.learners=4`; the baseline: `--config.model.head=m_heads
--config.objective.terms.divergence.weight=0`.

The paper reports Recall@1 of 60.6 (CUB), 85.2 (Cars), 76.3 (SOP) and 87.3 (In-Shop).
From the paper: the network, eight learners of dimension 64, the contrastive loss with
the squared distance inside the hinge and margin 1 summed over the learners, divergence
with margin and weight 1, batches of 64: 32 images at random, 16 of them with another
image of their class and 16 with one of another class; the longer side scaled to 256,
padded to a square, crops of 224, inputs as in Caffe's models, new layers initialised as
Caffe's "xavier". It trains by SGD with momentum 0.9 at an unknown learning rate; this
config uses Adam at 1e-4, which is independent of the scale of a sum over eight
learners: `--config.optimizer.method=sgd --config.optimizer.learning_rate=RATE`. Not
certain: the number of steps, whether the loss runs over those 32 pairs, as here, or
over all pairs of the batch: `--config.objective.terms.contrastive.among=all`, which
trains a randomly initialised network far faster (docs/results.md).
"""

from metricjax.config import (
    DATA_VARIANTS,
    choose_variant,
    default_config,
    terms,
    use_data,
)

# Training steps, by the size of the training set.
_STEPS = {"cub": 4000, "cars": 4000, "sop": 40000, "inshop": 20000, "folder": 4000}


def get_config(variant="folder"):
    choose_variant("abe_googlenet", variant, DATA_VARIANTS)
    config = default_config()
    use_data(config, variant)
    config.batch_size = 64
    config.sampler = "pairs"

    config.data.transform.recipe = "pad_crop"
    config.data.transform.image_size = 224

    config.model.backbone = "googlenet"
    config.model.last_stride = 2
    config.model.head = "abe"
    config.model.learners = 8
    config.model.dim = 512

    config.objective.terms = terms(
        contrastive={"margin": 1.0, "among": "adjacent"}, divergence={}
    )

    config.optimizer.method = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "cosine"
    config.steps = _STEPS[variant]
    config.eval_every = config.checkpoint_every = config.steps // 20
    config.evaluation.batch_size = 64
    return config
