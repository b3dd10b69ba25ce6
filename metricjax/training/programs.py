"""Model, losses, optimizer and training step of a config, without any data.

The devices of the mesh may be absent: `metricjax plan` compiles the same programs ahead
of time for a TPU topology.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

from metricjax import models, optimizers
from metricjax.config.schema import RunConfig
from metricjax.models.cost import forward_multiply_adds, multiply_adds
from metricjax.objectives import objective
from metricjax.objectives.hierarchical_proxies import Classes
from metricjax.objectives.objective import Losses
from metricjax.runtime import mesh as meshes
from metricjax.training import step


@dataclass(frozen=True, eq=False)
class TrainPrograms:
    """Model, losses, optimizer and training step for a config, classes and a mesh.

    Each is built when it is first used.

    Attributes:
      config: the settings.
      classes: the training classes.
      mesh: the devices that the batch is split over.
    """

    config: RunConfig
    classes: Classes
    mesh: jax.sharding.Mesh

    @property
    def root_key(self) -> jax.Array:
        """The key of all randomness in a run; each step folds its number into it."""
        return jax.random.key(self.config.seed)

    @cached_property
    def model(self) -> nn.Module:
        """The network, with a classifier if a loss needs one."""
        classes = self.classes.count if self.config.objective.classifies else None
        return models.build(self.config.model, classes)

    @cached_property
    def losses(self) -> Losses:
        """The losses of the objective, for these classes and the model's outputs."""
        return Losses(
            self.config.objective,
            self.classes,
            step.output_shapes(self.model, self._shape, self.config.batch_size),
        )

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer, with its schedule and parameter groups."""
        key = jax.random.key(0)
        params, _ = jax.eval_shape(
            lambda: step.init_params(self.model, self._shape, key, self.losses)
        )
        return optimizers.build(self.config.optimizer, self.config.steps, params)

    def check(self) -> None:
        """Raise an `InputError` if the losses or the optimizer refuse the settings."""
        self.losses.check()
        self.optimizer  # noqa: B018, the getter builds it

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.config.data.transform.shape

    def init_state(self, key: jax.Array, weights: Any = None) -> step.TrainState:
        """The state before the first step; a function to be jitted."""
        return step.init_state(
            self.model, self.optimizer, self._shape, key, self.losses, weights
        )

    @cached_property
    def abstract_state(self) -> step.TrainState:
        """Shapes, types and shardings of the state."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=meshes.replicated(self.mesh)
            ),
            jax.eval_shape(self.init_state, _key()),
        )

    @property
    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the global batch."""
        size = self.config.batch_size
        return {
            "images": jax.ShapeDtypeStruct((size, *self._shape), np.uint8),
            "labels": jax.ShapeDtypeStruct((size,), np.int32),
        }

    def step_flops(self) -> int:
        """FLOPs of the matrix products of a training step, summed over devices.

        Counted by tracing, every iteration of a loop included; XLA would count a loop's
        body once. Blocked losses are counted as their unblocked form.
        """
        function = step.make_train_step(
            self.model,
            self.optimizer,
            replace(self.config.objective, block_size=None),
            self.config.data.transform,
            parts=self.config.parts,
        )
        return 2 * multiply_adds(
            function, self.abstract_state, self.abstract_batch, _key()
        )

    def loss_flops(self) -> int:
        """The part of `step_flops` in the losses, their gradients and metrics."""
        state = self.abstract_state
        config = replace(self.config.objective, block_size=None)

        def value(output, proxies, labels):
            return objective.objective(
                config, output, labels, proxies=proxies, state=state.objective
            )

        output = self.losses.output._replace(features=None)
        labels = self.abstract_batch["labels"]
        gradient = jax.grad(value, argnums=(0, 1), has_aux=True)
        return 2 * multiply_adds(gradient, output, state.proxies, labels)

    def embedding_flops(self) -> int:
        """FLOPs of embedding one image."""
        return 2 * forward_multiply_adds(self.model, self._shape)

    def lower_train_step(self) -> jax.stages.Lowered:
        """Lower the training step for the mesh; `.compile()` it to run it.

        The program is `(state, batch, root_key) -> (state, metrics)` and donates the
        state.
        """
        function = step.make_train_step(
            self.model,
            self.optimizer,
            self.config.objective,
            self.config.data.transform,
            self.mesh,
            self.config.parts,
        )
        replicated, split = meshes.replicated(self.mesh), meshes.split(self.mesh)
        # The options were tried on the present devices and mean nothing on absent ones.
        are_here = self.mesh.devices.flat[0].platform == jax.default_backend()
        program = jax.jit(
            function,
            in_shardings=(replicated, split, replicated),
            out_shardings=replicated,
            donate_argnums=0,
            compiler_options=meshes.compiler_options() if are_here else {},
        )
        return program.lower(self.abstract_state, self.abstract_batch, _key())


def _key() -> jax.ShapeDtypeStruct:
    """The shape of a root key."""
    return jax.eval_shape(jax.random.key, 0)
