"""CGD: combination of multiple global descriptors (Jun et al., arXiv 1903.10663)."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from metricjax.errors import InputError
from metricjax.models import layers, pooling
from metricjax.models.output import Output
from metricjax.models.resnet import ResNet

DESCRIPTORS = {
    "S": "SPoC, the mean",
    "M": "MAC, the maximum",
    "G": "GeM",
    "A": "SPoC and MAC added",
    "W": "SPoC weighted towards the centre",
    "V": "GeM weighted towards the centre",
    "R": "R-MAC",
}
CLASSIFIER = ("classifier_bn", "classifier")
# Where the learnable exponents are.
GEM_NAMES = {"G": "gem", "V": "gem_weighted"}


class CGD(nn.Module):
    """A backbone and its combined global descriptors (arXiv 1903.10663, Fig. 1).

    With `f_i` the i-th global descriptor of the feature map, `W_i` a linear map without
    bias and `l2(v) = v / ||v||`:

        C (the paper's):  phi_i = l2(W_i f_i),  embedding = l2(concat_i phi_i)
                          or, with combine="sum", l2(sum_i phi_i)
        A:  phi_i = l2(W_i f_i), each a learner with a ranking loss of its own;
            embedding = l2(concat_i phi_i), where nothing is trained in common
        B:  embedding = l2(W concat_i f_i)

    In training, `logits = W_0 BN(f_1) + b_0`, from the first descriptor before its
    linear map, feed the auxiliary classification loss. One descriptor gives the plain
    pooling, linear map and normalisation of most other methods.

    Descriptors, embedding, learners and logits are float32 whatever the backbone's
    type, the linear maps at the highest matmul precision.

    Attributes:
      descriptors: letters S (SPoC), M (MAC), G (GeM), none twice; the first carries the
        classifier. Beyond the paper: A (SPoC + MAC, what Proxy-Anchor pools by), W and
        V (SPoC and GeM with `pooling.center_weights`), R (R-MAC).
      dim: length of the embedding; "A" and "C" with "concat" give each of the n
        descriptors `dim / n` of it. 0: the descriptors as they are, without the W_i.
      architecture: "C", "A" or "B".
      combine: "concat" or, for "C" only, "sum" (each branch then has `dim`).
      num_classes: classes of the training set, or None for no classifier.
      backbone: module called as `backbone(images, train=bool) -> [b, h, w, c]`; None
        is the paper's ResNet-50 with stage 4's downsampling removed.
      gem_p: GeM's exponent, >= 1 (fixed at 3 in the paper).
      learnable_p: learn GeM's exponent, from `gem_p` (> 1).
      use_bias: the linear maps of the embedding have a bias, as those of Proxy-Anchor
        and of embedding expansion do.

    Raises:
      InputError: an unknown or repeated letter, a `dim` that the descriptors do not
        divide, or an unknown architecture or combination; in the call, images that are
        not a float array [b, h, w, c].
    """

    descriptors: str = "MG"
    dim: int = 1536
    architecture: str = "C"
    combine: str = "concat"
    num_classes: int | None = None
    backbone: nn.Module | None = None
    gem_p: float = 3.0
    learnable_p: bool = False
    use_bias: bool = False

    def __post_init__(self):
        _check(self)
        if self.backbone is None:
            self.backbone = ResNet(depth=50, last_stride=1)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Output:
        """Embeds images.

        Args:
          images: [b, h, w, c] float, normalised.
          train: batch statistics instead of running averages, and logits. Pass
            `mutable=["batch_stats"]` to `apply` then.

        Returns:
          `Output`; `learners` [b, n, dim / n] for architecture "A" alone, `logits`
          [b, num_classes] in training where `num_classes` is given; `unnormalized` the
          embedding with none of the `l2` above.
        """
        _check_images(images)
        features = self.backbone(images, train=train)
        raw = [self._describe(letter, features) for letter in self.descriptors]
        embedding, learners, unnormalized = self._combine(raw)
        logits = None
        # Outside training drop_classifier may have removed these variables.
        if self.num_classes is not None and (train or self.is_initializing()):
            logits = self._classify(raw[0], train)
        return Output(embedding, learners, logits, features, unnormalized)

    def _describe(self, letter, features):
        if self.learnable_p and letter in GEM_NAMES:
            pooled = pooling.GeM(self.gem_p, name=GEM_NAMES[letter])
            return pooled(features, _weights(letter, features))
        return describe(letter, features, self.gem_p)

    def _combine(self, raw):
        """Raw descriptors, n of [b, c], to (embedding, learners or None, unnormalized).

        The last is the same combination of what the linear maps give as it is.
        """
        if self.architecture == "B":
            whole = self._project(jnp.concatenate(raw, axis=-1), self.dim, "fc")
            return layers.l2_normalize(whole), None, whole
        together = self.combine == "sum"
        width = self.dim if together else self.dim // len(raw)
        projected = [
            self._project(descriptor, width, f"fc_{letter}")
            for letter, descriptor in zip(self.descriptors, raw, strict=True)
        ]
        branches = [layers.l2_normalize(branch) for branch in projected]
        learners = jnp.stack(branches, axis=1) if self.architecture == "A" else None
        combined, unnormalized = (
            sum(parts) if together else jnp.concatenate(parts, axis=-1)
            for parts in (branches, projected)
        )
        return layers.l2_normalize(combined), learners, unnormalized

    def _project(self, descriptor, width, name):
        if not width:
            return descriptor
        return nn.Dense(
            width, use_bias=self.use_bias, precision=lax.Precision.HIGHEST, name=name
        )(descriptor)

    def _classify(self, descriptor, train):
        normalization, linear = CLASSIFIER
        descriptor = layers.BatchNorm(name=normalization)(descriptor, train)
        return nn.Dense(self.num_classes, precision=lax.Precision.HIGHEST, name=linear)(
            descriptor
        )


def describe(
    letter: str,
    features: Float[Array, "b h w c"],
    gem_p: float | Float[Array, ""] = 3.0,
) -> Float[Array, "b c"]:
    """The global descriptor that a letter of `DESCRIPTORS` stands for, float32."""
    if letter == "S":
        return pooling.spoc(features)
    if letter == "M":
        return pooling.mac(features)
    if letter == "A":
        return pooling.spoc(features) + pooling.mac(features)
    if letter == "R":
        return pooling.rmac(features)
    weights = _weights(letter, features)
    if letter == "W":
        return pooling.spoc(features, weights)
    return pooling.gem(features, gem_p, weights=weights)


def _weights(letter, features):
    """Of the positions of a map, for the descriptors that weight them."""
    return pooling.center_weights(*features.shape[1:3]) if letter in "WV" else None


def drop_classifier(variables: dict) -> dict:
    """The variables that inference needs: all but the classification branch's.

    Args:
      variables: of a CGD module, as `init` returns them.

    Returns:
      A new dictionary, to be used with `train=False`; arrays are shared.
    """
    return {
        collection: {
            name: value for name, value in entries.items() if name not in CLASSIFIER
        }
        for collection, entries in variables.items()
    }


def _check(head):
    letters = head.descriptors
    known = ", ".join(f"{letter} ({name})" for letter, name in DESCRIPTORS.items())
    if not letters or any(letter not in DESCRIPTORS for letter in letters):
        raise InputError(
            f"descriptors is {letters!r}; it must be letters out of {known}."
        )
    if len(set(letters)) != len(letters):
        raise InputError(
            f"descriptors is {letters!r}; a letter may stand in it only once."
        )
    if head.architecture not in ("A", "B", "C"):
        raise InputError(
            f"architecture is {head.architecture!r}; it must be 'C', 'A' or 'B'."
        )
    if head.combine not in ("concat", "sum"):
        raise InputError(f"combine is {head.combine!r}; it must be 'concat' or 'sum'.")
    if head.combine == "sum" and head.architecture != "C":
        raise InputError(
            f"combine='sum' belongs to architecture 'C'; architecture is "
            f"{head.architecture!r}, so set combine='concat'."
        )
    _check_numbers(head)


def _check_numbers(head):
    count = len(head.descriptors)
    divided = head.architecture != "B" and head.combine == "concat"
    if head.dim < 0 or (divided and head.dim % count):
        nearest = max(1, round(head.dim / count)) * count
        raise InputError(
            f"dim is {head.dim}, which {count} descriptors cannot share equally; "
            f"set it to {nearest}."
        )
    if head.num_classes is not None and head.num_classes < 1:
        raise InputError(
            f"num_classes is {head.num_classes}; it must be at least 1, or None for no "
            "classifier."
        )
    lowest = "above 1" if head.learnable_p else "at least 1"
    if not head.gem_p >= 1 or (head.learnable_p and head.gem_p == 1):
        raise InputError(f"gem_p is {head.gem_p}; it must be {lowest}.")


def _check_images(images):
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            "A model takes normalised float images [batch, height, width, channels]; "
            f"these are {images.dtype} of shape {tuple(images.shape)}."
        )
