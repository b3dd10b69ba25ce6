"""Weights from files: PyTorch's features, and files that are wrong."""

import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from metricjax.errors import InputError
from metricjax.models import pretrained
from metricjax.models.abe import ABE, MHeads
from metricjax.models.bn_inception import BNInception
from metricjax.models.cgd import CGD
from metricjax.models.convnet import ConvNet
from metricjax.models.googlenet import GoogLeNet
from metricjax.models.resnet import ResNet
from metricjax.models.shufflenet import ShuffleNetV2
from metricjax.models.vit import ViT

SMALL = ResNet(18)


def _arrays(state):
    return {name: np.ascontiguousarray(t.numpy()) for name, t in state.items()}


def _images(side, channels=3, count=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, side, side, channels)).astype(np.float32)


def _torch_features(model, images):
    import torch

    with torch.no_grad():
        features = model(torch.tensor(images.transpose(0, 3, 1, 2)))
    return features.numpy()


def _ours(path, module, images, **options):
    variables = pretrained.load(path, module, image_shape=images.shape[1:], **options)
    return np.asarray(jax.jit(module.apply)(variables, images))


def _torchvision(name, **options):
    import torch_models

    model = getattr(torch_models.torchvision(), name)(weights=None, **options)
    return torch_models.randomize(model)


def _until(model, *ends):
    """The feature map in front of the pooling and the classifier."""
    import torch

    for name in ends:
        setattr(model, name, torch.nn.Identity())
    return model


def _resnet(name):
    def features(model):
        import torch

        children = [m for n, m in model.named_children() if n not in ("avgpool", "fc")]
        return torch.nn.Sequential(*children)

    return _torchvision(name), features


def _se_resnet():
    import torch_models

    timm = torch_models.timm()
    model = torch_models.randomize(timm.create_model("seresnet50"))
    return model, lambda model: model.forward_features


def _shufflenet():
    def features(model):
        import torch

        names = ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5")
        return torch.nn.Sequential(*(getattr(model, name) for name in names))

    return _torchvision("shufflenet_v2_x1_0"), features


def _googlenet_bn():
    def features(model):
        import torch

        left_out = ("aux1", "aux2", "avgpool", "dropout", "fc")
        children = [m for n, m in model.named_children() if n not in left_out]
        return torch.nn.Sequential(*children)

    return _torchvision("googlenet", aux_logits=True, init_weights=False), features


def _vit(name="vit_small_patch16_224", **options):
    import torch_models

    timm = torch_models.timm()
    model = torch_models.randomize(timm.create_model(name, **options))

    def tokens(model):
        return lambda x: model.forward_features(x)[:, 0, :, None, None]

    return model, tokens


def _caffe_googlenet():
    import torch_models

    return torch_models.randomize(torch_models.CaffeGoogLeNet()), lambda model: model


def _bn_inception():
    import torch_models

    return torch_models.randomize(torch_models.BNInception()), lambda model: model


# What has the weights; ours; side of the images.
PAIRS = {
    "resnet18": (lambda: _resnet("resnet18"), ResNet(18), 64),
    "resnet50": (lambda: _resnet("resnet50"), ResNet(50), 64),
    "se_resnet50": (_se_resnet, ResNet(50, squeeze_excitation=True), 64),
    "shufflenet": (_shufflenet, ShuffleNetV2(), 64),
    "googlenet": (_caffe_googlenet, GoogLeNet(), 64),
    "googlenet_bn": (_googlenet_bn, GoogLeNet(layout="bn"), 64),
    "bn_inception": (_bn_inception, BNInception(), 64),
    "vit_small": (_vit, ViT(), 224),
}
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    [name if name in ("resnet18", "shufflenet") else pytest.param(name, marks=slow)
     for name in PAIRS],
)  # fmt: skip
@pytest.mark.parametrize("odd", [False, True])
def test_features_are_pytorchs(name, odd, tmp_path):
    """Within 1e-4, statistics of normalisation included; also where pooling rounds."""
    pytest.importorskip("torch", reason="needs the extra `torch`")
    make, module, side = PAIRS[name]
    if odd and name == "vit_small":
        pytest.skip("a patch divides the sides of a ViT's images")
    torch_model, part = make()
    state = torch_model.state_dict()
    if name == "googlenet":
        state = torch_model.caffe_state()
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(_arrays(state), path)
    # BN-Inception halves even sides only.
    images = _images(side + (32 if name == "bn_inception" else 7) * odd)
    expected = _torch_features(part(torch_model), images).transpose(0, 2, 3, 1)
    said = []
    got = _ours(path, module, images, say=said.append)
    assert got.shape == expected.shape
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    if name not in ("googlenet",):
        assert "classifier is left out" in said[0]


def test_torchvisions_names_of_a_vit(tmp_path):
    torch_models = pytest.importorskip("torch_models")
    model = torch_models.torchvision().vision_transformer.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=24,
        mlp_dim=96, num_classes=5,
    )  # fmt: skip
    torch_models.randomize(model)
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(_arrays(model.state_dict()), path)
    images = _images(32)

    def tokens(x):
        patches = model._process_input(x)
        first = model.class_token.expand(len(x), -1, -1)
        import torch

        return model.encoder(torch.cat([first, patches], dim=1))[:, 0]

    got = _ours(path, ViT(dim=24, depth=2, heads=2), images)[:, 0, 0]
    np.testing.assert_allclose(got, _torch_features(tokens, images), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("side", [160, 288])
def test_position_embeddings_of_another_size(side, tmp_path):
    """As timm makes them when it loads such a checkpoint."""
    pytest.importorskip("torch")
    model, _ = _vit()
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(_arrays(model.state_dict()), path)
    from timm.layers import resample_abs_pos_embed

    grid = [side // 16] * 2
    expected = resample_abs_pos_embed(model.pos_embed, grid).detach().numpy()
    variables = pretrained.load(path, ViT(), image_shape=(side, side, 3))
    got = variables["params"]["pos_embed"]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def _random(module, *shape):
    """Variables for images [h, w, c], drawn without running anything."""
    rng = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.tree.map(
        lambda leaf: rng.normal(0.5, 0.1, leaf.shape).astype(np.float32), shapes
    )


@pytest.fixture(scope="module")
def resnet_arrays():
    """A ResNet-18's arrays, without torchvision."""
    return _random(SMALL, 32, 32, 3)


@pytest.fixture
def resnet_file(resnet_arrays, tmp_path):
    path = tmp_path / "resnet18.safetensors"
    pretrained.save(path, SMALL, resnet_arrays)
    return path


def test_saved_is_loaded(resnet_file, resnet_arrays):
    names = set(safetensors.numpy.load_file(resnet_file))
    assert {"conv1.weight", "layer2.0.downsample.1.running_var"} <= names
    loaded = pretrained.load(resnet_file, SMALL, image_shape=(32, 32, 3))
    jax.tree.map(np.testing.assert_array_equal, loaded, resnet_arrays)


def _rewritten(path, change):
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(change(arrays), path)
    return path


def test_npz_and_prefixes_and_a_classifier(resnet_file, resnet_arrays, tmp_path):
    arrays = safetensors.numpy.load_file(resnet_file)
    arrays = {f"module.backbone.{name}": array for name, array in arrays.items()}
    arrays["fc.weight"] = np.zeros((10, 512), np.float32)
    arrays["module.backbone.bn1.num_batches_tracked"] = np.int64(3)
    arrays = {n: a for n, a in arrays.items() if not n.startswith("fc.")} | {
        "module.fc.weight": arrays["fc.weight"]
    }
    path, said = tmp_path / "weights.npz", []
    np.savez(path, **arrays)
    loaded = pretrained.load(path, SMALL, image_shape=(32, 32, 3), say=said.append)
    jax.tree.map(np.testing.assert_array_equal, loaded, resnet_arrays)
    assert "fc.weight" in said[0]


def test_pytorchs_file(resnet_file, resnet_arrays, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    arrays = safetensors.numpy.load_file(resnet_file)
    state = {name: torch.tensor(array) for name, array in arrays.items()}
    for name, held in (("bare", state), ("inside", {"epoch": 3, "state_dict": state})):
        path = tmp_path / f"{name}.pth"
        torch.save(held, path)
        loaded = pretrained.load(path, SMALL, image_shape=(32, 32, 3))
        jax.tree.map(np.testing.assert_array_equal, loaded, resnet_arrays)


def test_grey_images(resnet_file, resnet_arrays):
    """What the network computes of a grey picture in three equal channels."""
    grey = _images(32, channels=1)
    expected = jax.jit(SMALL.apply)(resnet_arrays, np.repeat(grey, 3, axis=-1))
    got = _ours(resnet_file, SMALL, grey)
    np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_heads_get_what_belongs_to_their_backbone(resnet_file, resnet_arrays):
    shape = (32, 32, 3)
    images = jnp.zeros((1, *shape))
    for head in (
        CGD("S", 8, backbone=SMALL),
        ABE(2, 8, SMALL),
        MHeads(2, 8, SMALL),
    ):
        loaded = pretrained.load(resnet_file, head, image_shape=shape)
        variables = jax.eval_shape(head.init, jax.random.key(0), images)
        merged = pretrained.merge(variables, loaded)
        assert jax.tree.structure(merged) == jax.tree.structure(variables)
        assert set(loaded["params"]) == {"backbone"}
        counted = {
            kind: jax.tree.structure(loaded[kind]["backbone"]).num_leaves
            for kind in loaded
        }
        wanted = {
            kind: jax.tree.structure(variables[kind]["backbone"]).num_leaves
            for kind in loaded
        }
        assert counted == wanted
    kernel = resnet_arrays["params"]["layer4_1"]["conv2"]["kernel"]
    both = loaded["params"]["backbone"]["branch"]["network"]["layer4_1"]["conv2"]
    np.testing.assert_array_equal(both["kernel"], np.stack([kernel, kernel]))


def test_a_whole_model_is_saved_for_others(resnet_arrays, tmp_path):
    head = CGD("SG", 8, backbone=SMALL)
    variables = _random(head, 32, 32, 3)
    path = tmp_path / "inside" / "model.safetensors"
    pretrained.save(path, head, variables)
    arrays = safetensors.numpy.load_file(path)
    assert arrays["head.fc_S.weight"].shape == (4, 512)
    assert arrays["layer1.0.conv1.weight"].shape == (64, 64, 3, 3)
    loaded = pretrained.load(path, head, image_shape=(32, 32, 3))
    jax.tree.map(
        np.testing.assert_array_equal,
        loaded["params"]["backbone"],
        variables["params"]["backbone"],
    )


@pytest.mark.parametrize(
    "module",
    [
        CGD("SG", 8, num_classes=5, backbone=SMALL),
        ABE(2, 8, backbone=SMALL, branch_after="layer2_1", attention_blocks=1),
        MHeads(2, 8, backbone=SMALL, branch_after="layer2_1"),
    ],
    ids=lambda module: type(module).__name__,
)
def test_all_of_a_model_comes_back(module, tmp_path):
    """Kernels of several heads too, which stand one behind the other."""
    variables = _random(module, 32, 32, 3)
    path = tmp_path / "model.safetensors"
    pretrained.save(path, module, variables)
    loaded = pretrained.load_saved(path, module, image_shape=(32, 32, 3))
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_own_networks_too(tmp_path):
    module = ConvNet(widths=(4, 8), whole=3)
    variables = _random(module, 16, 16, 1)
    path = tmp_path / "convnet.safetensors"
    pretrained.save(path, module, variables)
    loaded = pretrained.load(path, module, image_shape=(16, 16, 1))
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def _without(name):
    return lambda arrays: {n: a for n, a in arrays.items() if n != name}


def _with(name, array):
    return lambda arrays: {**arrays, name: array}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("bn1.bias"), "lacks 1 of the 100 arrays of ResNet: bn1.bias"),
        (_with("layer3.6.x", np.zeros(1, np.float32)), "no place for: layer3.6.x"),
        (_with("bn1.bias", np.zeros(65, np.float32)), r"bn1.bias is of shape \[65\]"),
        (
            _with("conv1.weight", np.zeros((64, 4, 7, 7), np.float32)),
            "images of 1 or 3 channels",
        ),
        (lambda _: {"a.b": np.zeros(1, np.float32)}, "holds no weights of ResNet"),
    ],
)
def test_weights_of_another_network(change, words, resnet_file):
    with pytest.raises(InputError, match=words):
        pretrained.load(_rewritten(resnet_file, change), SMALL, image_shape=(32, 32, 3))


class _Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a file of weights was run')",)


def test_files_that_are_none(resnet_file, tmp_path):
    def refused(path, words):
        with pytest.raises(InputError, match=words):
            pretrained.load(path, SMALL, image_shape=(32, 32, 3))

    refused(tmp_path / "nothing.pth", "was not found")
    text = tmp_path / "text.pth"
    text.write_text("hello")
    refused(text, "is not a safetensors")
    short = tmp_path / "short.safetensors"
    short.write_bytes(resnet_file.read_bytes()[:-1000])
    refused(short, "cut short or damaged")
    arrays = safetensors.numpy.load_file(resnet_file)
    npz = tmp_path / "short.npz"
    np.savez(npz, **arrays)
    npz.write_bytes(npz.read_bytes()[:5000])
    refused(npz, "cut short or damaged")
    objects = tmp_path / "objects.npz"
    np.savez(objects, a=np.array([{"a": 1}], dtype=object))
    refused(objects, "cut short or damaged")


@pytest.mark.filterwarnings("error")
def test_a_pickle_with_code_is_not_run(tmp_path):
    """And the sentence has nothing of torch's advice to run it all the same."""
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    for name, write, named in (
        ("new", lambda path: torch.save({"conv1.weight": _Harm()}, path), "exec"),
        ("args", lambda path: torch.save({"args": Path()}, path), "pathlib.P"),
        ("old", lambda path: path.write_bytes(pickle.dumps(_Harm(), protocol=2)), ""),
        ("later", lambda path: path.write_bytes(pickle.dumps(_Harm())), ""),
    ):
        path = tmp_path / f"{name}.pth"
        write(path)
        with pytest.raises(InputError, match="more than arrays") as refused:
            pretrained.load(path, SMALL, image_shape=(32, 32, 3))
        assert named in str(refused.value)
        assert "trust" not in str(refused.value) and str(refused.value).isprintable()
