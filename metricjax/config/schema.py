"""The settings of a run as frozen dataclasses, each checked where it stands.

Add a setting here: a field with its default, a line under `Attributes`, its range in
`__post_init__`. What two settings must be to each other is checked in `constraints`.
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
    """Which images, and how they come.

    Attributes:
      name: a data set of `data.open_dataset`.
      root: where its files are; None where it needs none.
      source: where one gets the files; said when they are missing.
      closed_set: allow classes that stand in both train and test.
      cropped: crop the images to the official bounding boxes, of `cub` and `cars`.
      holdout: share of the training classes held out for validation.
      folds: parts of the training classes of which one is held out instead, see
        `datasets.fold` and `--mode folds`; 0: none.
      fold: which of them, 0 to folds - 1.
      turns: 1 to 4 quarter turns of the training images, each a class of its own, see
        `datasets.with_turns`.
      transform: how images are prepared and augmented.
      threads: that prepare batches; None: one per processor.
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
    """How embeddings are judged.

    Attributes:
      recall_at: the K of Recall@K.
      batch_size: images embedded at a time.
      select_by: validation metric by which the best checkpoint is chosen.
      select_on_test: choose it on the test classes, and train on all others. Such
        numbers are too good; results and report are stamped.
      bootstrap: resamples of the classes for the intervals.
      clustering_restarts: first guesses of the k-means whose NMI, AMI and F1 stand
        beside the metrics of the test classes; 0: none.
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
    """What `--mode plan` looks at; training does not.

    Attributes:
      topology: TPU chips that need not be here, such as "v5e:16x16"; None: the devices
        that are here.
      utilization: the share of a chip's published FLOP/s that training is assumed to
        reach, in (0, 1].
      compiles: programs compiled to find the largest batch, and as many to find what
        would make room; 0: look for neither.
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
      micro_batch_size: how many of them go through the network at a time, all devices
        together; None: all. The losses see the whole batch all the same, and the
        gradient is that of the whole, but batch normalisation goes by the statistics
        of each part. For batches that memory has no room for.
      sampler: which images stand in a batch. "classes": P classes of K images;
        "distinct": the same without classes of fewer than K images, so that no image
        is twice in a batch; "categories": P x K, the classes from few categories;
        "pairs": images at random, half of them beside another of their class, half
        beside one of another; "images": images at random. See `data.samplers`.
      instances_per_class: images of each class in a batch, K of P x K; "pairs" and
        "images" have none.
      categories_per_batch: of "categories": 1 for negatives of one's own category
        alone, P for as many categories as classes.
      log_every, eval_every, checkpoint_every: in steps.
      host_timeout: of several hosts, for how long one may give no sign of life before
        the others end, in seconds.
      data, model, objective, optimizer, evaluation: the parts.
      plan: what `--mode plan` looks at.
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
        """In how many turns a batch goes through the network."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)
