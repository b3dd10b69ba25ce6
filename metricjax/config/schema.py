"""The settings of a run as frozen dataclasses.

Add a setting here: a field with its default, a line under `Attributes`, its range in
`__post_init__`. Constraints between settings are in `constraints`.
"""

from dataclasses import dataclass, field

from metricjax.config import constraints
from metricjax.data.transforms import TransformConfig
from metricjax.errors import InputError
from metricjax.models.embedder import ModelConfig
from metricjax.objectives.objective import ObjectiveConfig
from metricjax.optimizers import OptimizerConfig


@dataclass(frozen=True)
class DataConfig:
    """The data set and the input pipeline.

    Attributes:
      name: a data set of `data.open_dataset`.
      root: where its files are; None if it needs none.
      source: where to get the files; part of the message if they are missing.
      closed_set: allow classes in both train and test.
      cropped: crop `cub` and `cars` to the official bounding boxes.
      holdout: share of the training classes held out for validation.
      folds: number of folds of the training classes; one is held out instead, see
        `splits.fold` and `--mode folds`; 0: none.
      fold: which of them, 0 to folds - 1.
      turns: 1 to 4; rotates training images by quarter turns, each rotation a class of
        its own, see `splits.with_turns`.
      transform: how images are prepared and augmented.
      threads: for preparing batches; None: one per processor.
      cache_gib: memory for decoded images, in GiB.
    """

    name: str = "glyphs"
    root: str | None = None
    source: str = ""
    closed_set: bool = False
    cropped: bool = False
    holdout: float = 0.15
    folds: int = 0
    fold: int = 0
    turns: int = 1
    transform: TransformConfig = TransformConfig()
    threads: int | None = None
    cache_gib: float = 1.0

    def __post_init__(self):
        for name in ("threads", "cache_gib"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(
                    f"config.data.{name} is {getattr(self, name)}: it must be 0 or "
                    "more."
                )


@dataclass(frozen=True)
class EvaluationConfig:
    """How embeddings are evaluated.

    Attributes:
      recall_at: the K of Recall@K.
      batch_size: images embedded at a time.
      select_by: validation metric that selects the best checkpoint.
      select_on_test: select it on the test classes, and train on all others. Such
        numbers are too good; results and report are marked.
      bootstrap: resamples of the classes for the intervals.
      clustering_restarts: k-means restarts for NMI, AMI and F1 of the test classes; 0:
        no clustering metrics.
    """

    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    batch_size: int = 256
    select_by: str = "map@r"
    select_on_test: bool = False
    bootstrap: int = 1000
    clustering_restarts: int = 0

    def __post_init__(self):
        if 1 not in self.recall_at or min(self.recall_at) < 1:
            raise InputError(
                f"config.evaluation.recall_at is {self.recall_at}: each K must be 1 or "
                "more, and 1 one of them."
            )
        for name in ("batch_size", "bootstrap"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"config.evaluation.{name} is {getattr(self, name)}: it must be 1 "
                    "or more."
                )
        if self.clustering_restarts < 0:
            raise InputError(
                f"config.evaluation.clustering_restarts is {self.clustering_restarts}: "
                "it must be 0 or more."
            )


@dataclass(frozen=True)
class PlanConfig:
    """Settings of `--mode plan`; training ignores them.

    Attributes:
      topology: TPU chips to plan for, such as "v5e:16x16"; None: the attached devices.
      utilization: the share of a chip's published FLOP/s that training is assumed to
        reach, in (0, 1].
      compiles: programs compiled to find the largest batch, and as many to find
        settings that need less memory; 0: search for neither.
    """

    topology: str | None = None
    utilization: float = 0.4
    compiles: int = 3

    def __post_init__(self):
        if not 0 < self.utilization <= 1:
            raise InputError(
                f"config.plan.utilization is {self.utilization}: it must be above 0 "
                "and at most 1."
            )
        if self.compiles < 0:
            raise InputError(
                f"config.plan.compiles is {self.compiles}: it must be 0 or more."
            )


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
      seed: of initialisation, data order, augmentation, held-out classes.
      steps: optimizer steps.
      batch_size: images of the global batch, all devices together.
      micro_batch_size: images per pass through the network, all devices together;
        None: all. Losses and gradients are those of the whole batch, but batch
        normalisation uses the statistics of each part. For batches that do not fit
        into memory.
      sampler: which images a batch contains. "classes": P classes of K images;
        "distinct": the same without classes of fewer than K images, so that no image
        is twice in a batch; "categories": P x K, the classes from few categories;
        "pairs": random images, half paired with an image of the same class, half with
        one of another; "images": random images. See `data.samplers`.
      instances_per_class: images of each class in a batch, K of P x K; "pairs" and
        "images" have none.
      categories_per_batch: for "categories": 1 for negatives from the same category
        only, P for as many categories as classes.
      log_every, eval_every, checkpoint_every: in steps.
      host_timeout: seconds without a sign of life from one host after which the other
        hosts end.
      data, model, objective, optimizer, evaluation: the parts.
      plan: settings of `--mode plan`.
    """

    objective: ObjectiveConfig
    seed: int = 0
    steps: int = 1000
    batch_size: int = 128
    micro_batch_size: int | None = None
    sampler: str = "classes"
    instances_per_class: int = 4
    categories_per_batch: int = 1
    log_every: int = 20
    eval_every: int = 250
    checkpoint_every: int = 250
    host_timeout: float = 60.0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = EvaluationConfig()
    plan: PlanConfig = PlanConfig()

    def __post_init__(self):
        counts = ("steps", "batch_size", "instances_per_class", "categories_per_batch")
        for name in (*counts, "log_every", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"config.{name} is {getattr(self, name)}: it must be 1 or more."
                )
        if self.seed < 0:
            raise InputError(f"config.seed is {self.seed}: it must be 0 or more.")
        if self.host_timeout < 5:
            raise InputError(
                f"config.host_timeout is {self.host_timeout}: it must be 5 seconds or "
                "more, or a host that is merely busy would pass for a lost one."
            )
        constraints.check_run(self)

    @property
    def parts(self) -> int:
        """Number of micro-batches per batch."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)
