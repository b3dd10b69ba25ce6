"""One training step of ours: forward, loss, backward, SGD with momentum."""

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
from train_step_cases import CASES, CLASSES, LEARNING_RATE, MOMENTUM, inputs

from metricjax import losses, models
from metricjax.models import abe, cost
from metricjax.runtime import mesh


class OneByOne(abe.ABE):
    """The same learners, one pass through the branch after the other."""

    def _branches(self, shared, masks, train):
        passes = [
            self.backbone("branch", shared * masks[:, learner], train)
            for learner in range(self.learners)
        ]
        return [jnp.stack(part, axis=1) for part in zip(*passes, strict=True)]


class Task:
    """The step of a case, compiled, its state on the device."""

    def __init__(self, name, batch, way):
        mesh.keep_freed_memory()
        case = CASES[name]
        images, labels = inputs(case, batch)
        one_by_one, ynnpack = way == "one by one", way == "with YNNPACK"
        dtype = "float32" if one_by_one or ynnpack else way
        model = models.build(
            models.ModelConfig(**case.model, dtype=dtype),
            CLASSES if case.classifies else None,
        )
        if one_by_one:
            model = OneByOne(model.learners, model.dim, model.backbone)
        self._macs = cost.forward_multiply_adds(model, case.shape) * batch
        optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)
        variables = jax.jit(model.init)(jax.random.key(0), images[:1])
        params = variables["params"]
        self._state = params, variables.get("batch_stats", {}), optimizer.init(params)
        self._batch = jnp.asarray(images), jnp.asarray(labels)
        self._value = None

        def step(state, images, labels):
            params, statistics, moments = state

            def loss(params):
                output, updated = model.apply(
                    {"params": params, "batch_stats": statistics},
                    images, train=True, mutable=["batch_stats"],
                )  # fmt: skip
                if output.learners is None:
                    value = losses.triplet(output.embedding, labels)
                else:
                    value = losses.divergence(output.learners) + sum(
                        losses.contrastive(learner, labels)
                        for learner in output.learners.swapaxes(0, 1)
                    )
                if output.logits is not None:
                    value += losses.softmax_cross_entropy(output.logits, labels)
                return value, updated.get("batch_stats", {})

            (value, statistics), slopes = jax.value_and_grad(loss, has_aux=True)(params)
            updates, moments = optimizer.update(slopes, moments, params)
            return (optax.apply_updates(params, updates), statistics, moments), value

        self._step = jax.jit(
            step,
            donate_argnums=0,
            compiler_options={} if ynnpack else mesh.compiler_options(),
        )

    def step(self):
        before = self._value
        self._state, self._value = self._step(self._state, *self._batch)
        here = self._state if jax.default_backend() == "cpu" else before
        jax.block_until_ready(here)

    def result(self):
        return {"value": np.asarray(self._value), "macs": np.asarray(self._macs)}

    def device_peak(self):
        device = jax.devices()[0]
        if device.platform == "cpu":
            return None
        return device.memory_stats()["peak_bytes_in_use"]


if __name__ == "__main__":
    harness.serve(lambda spec: Task(spec["case"], spec["batch"], spec["way"]))
