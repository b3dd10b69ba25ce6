"""Letters drawn from typefaces: train on half of the characters, search the others.

    python -m metricjax.main --config configs/quickstart.py

Needs no data and no network. Takes about a minute on two cores. Recall@1 on unseen
characters is 0.741 with seed 0; raw pixels reach 0.16.
"""

from metricjax.config import default_config, terms


def get_config():
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

    config.objective.terms = terms(
        triplet={"margin": 0.4},
        softmax={"temperature": 2.0, "label_smoothing": 0.1},
    )

    config.optimizer.method = "adamw"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 1e-4
    return config
