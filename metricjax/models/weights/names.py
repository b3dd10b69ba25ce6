"""What an array of ours is called in the files of others.

A path of ours, `layer1_0/conv1/kernel`, becomes a name by rules: pairs of a pattern and
what it is replaced by, applied in turn. A backbone has one set of rules for each source
that its weights come from, the first of which is the one that files of ours use.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from metricjax.models.backbone import Backbone

Rules = Sequence[tuple[str, str]]
Leaf = tuple[str, ...]

# Leaves, last: `kernel` and `scale` are both a weight there.
_LEAVES = (
    (r"/(kernel|scale)$", ".weight"),
    (r"/bias$", ".bias"),
    (r"/mean$", ".running_mean"),
    (r"/var$", ".running_var"),
    (r"/", "."),
)
_RESNET = (
    (r"^layer(\d)_(\d+)", r"layer\1.\2"),
    (r"/downsample_conv", "/downsample.0"),
    (r"/downsample_bn", "/downsample.1"),
)
_GOOGLENET = ((r"/branch(\d)_(\d)", r"/branch\1.\2"),)
_CAFFE_GOOGLENET = (
    (r"/conv/(kernel|bias)$", r"/\1"),
    (r"^conv1/", "conv1_7x7_s2/"),
    (r"^conv2/", "conv2_3x3_reduce/"),
    (r"^conv3/", "conv2_3x3/"),
    (r"^inception(\w\w)/", r"inception_\1_"),
    (r"_branch1/", "_1x1/"),
    (r"_branch2_0/", "_3x3_reduce/"),
    (r"_branch2_1/", "_3x3/"),
    (r"_branch3_0/", "_5x5_reduce/"),
    (r"_branch3_1/", "_5x5/"),
    (r"_branch4_1/", "_pool_proj/"),
)
_BN_INCEPTION = (
    (r"^conv1/", "conv1_7x7_s2/"),
    (r"^conv2_reduce/", "conv2_3x3_reduce/"),
    (r"^conv2/", "conv2_3x3/"),
    (r"^inception(\w\w)/", r"inception_\1_"),
    (r"/conv/", "/"),
    (r"/bn/", "_bn/"),
)
_SHUFFLENET = (
    (r"^stage(\d)_(\d+)", r"stage\1.\2"),
    (r"^(conv\d)/conv", r"\1/0"),
    (r"^(conv\d)/bn", r"\1/1"),
    (r"/branch(\d)_(\d)/conv", r"/branch\1/\2"),
    (r"/branch(\d)_0/bn", r"/branch\1/1"),
    (r"/branch(\d)_2/bn", r"/branch\1/3"),
    (r"/branch(\d)_3/bn", r"/branch\1/4"),
    (r"/branch(\d)_5/bn", r"/branch\1/6"),
)
_TIMM_VIT = (
    (r"^patch_embed", "patch_embed/proj"),
    (r"^block(\d+)/(qkv|proj)", r"blocks/\1/attn/\2"),
    (r"^block(\d+)/(fc\d)", r"blocks/\1/mlp/\2"),
    (r"^block(\d+)/", r"blocks/\1/"),
)
_TORCHVISION_VIT = (
    (r"^patch_embed", "conv_proj"),
    (r"^cls_token", "class_token"),
    (r"^pos_embed", "encoder/pos_embedding"),
    (r"^norm/", "encoder/ln/"),
    (r"^block(\d+)", r"encoder/layers/encoder_layer_\1"),
    (r"/norm(\d)", r"/ln_\1"),
    (r"/qkv/kernel$", "/self_attention/in_proj_weight"),
    (r"/qkv/bias$", "/self_attention/in_proj_bias"),
    (r"/proj/", "/self_attention/out_proj/"),
    (r"/fc1/", "/mlp/0/"),
    (r"/fc2/", "/mlp/3/"),
)
_OLD_TORCHVISION_VIT = (
    *_TORCHVISION_VIT,
    (r"/mlp/0/", "/mlp/linear_1/"),
    (r"/mlp/3/", "/mlp/linear_2/"),
)
_SOURCES: Mapping[str, Sequence[Rules]] = {
    "BNInception": (_BN_INCEPTION,),
    "GoogLeNet": (_GOOGLENET, _CAFFE_GOOGLENET),
    "ResNet": (_RESNET,),
    "ShuffleNetV2": (_SHUFFLENET,),
    "ViT": (_TIMM_VIT, _TORCHVISION_VIT, _OLD_TORCHVISION_VIT),
}
_CLASSIFIERS = (
    "fc.", "head.", "head_dist.", "heads.", "classifier.", "last_linear.", "aux1.",
    "aux2.", "loss1", "loss2", "loss3",
)  # fmt: skip
_PREFIXES = ("module.", "backbone.", "encoder.", "model.", "base.", "features.")


def is_classifier(name: str) -> bool:
    """Whether an array belongs behind the backbone, where a head of ours stands."""
    return name.startswith(_CLASSIFIERS)


def plain(leaf: Leaf) -> str:
    """A path with dots and PyTorch's names of its leaves."""
    return _apply((), leaf)


def own_name(backbone: Backbone, leaf: Leaf) -> str:
    """What files of ours call an array of the backbone."""
    return _apply(_SOURCES.get(type(backbone).__name__, ((),))[0], leaf)


def match(
    backbone: Backbone, leaves: Sequence[Leaf], found: Mapping[str, Any]
) -> tuple[dict[Leaf, str], dict[str, Any]]:
    """Names of our arrays in the source that a file seems to be from.

    Args:
      backbone: what the weights are for.
      leaves: paths of all its variables.
      found: arrays of the file by name.

    Returns:
      A name for every leaf, also of arrays that the file lacks, and the file's arrays
      by their names without what is common or does not count.
    """
    stored = _unwrapped(found)
    best = None
    for rules in _SOURCES.get(type(backbone).__name__, ((),)):
        names = {leaf: _apply(rules, leaf) for leaf in leaves}
        hits = sum(name in stored for name in names.values())
        if best is None or hits > best[0]:
            best = hits, names
    return best[1], stored


def _apply(rules: Rules, leaf: Leaf) -> str:
    name = "/".join(leaf)
    for pattern, replacement in (*rules, *_LEAVES):
        name = re.sub(pattern, replacement, name)
    return name


def _unwrapped(found):
    """Without a prefix that all share, without counters of batches, without slashes."""
    stored = {
        name.replace("/", "_"): array
        for name, array in found.items()
        if not name.endswith("num_batches_tracked")
    }
    for _ in range(3):
        inside = [name for name in stored if not is_classifier(name)]
        shared = [
            p for p in _PREFIXES if inside and all(n.startswith(p) for n in inside)
        ]
        if not shared:
            break
        stored = {name.removeprefix(shared[0]): a for name, a in stored.items()}
    return stored
