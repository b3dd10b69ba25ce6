"""PyTorch models whose weights people have: torchvision's and timm's own classes, and
the two that only exist as Caffe models and ports of them, written out here."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
functional = torch.nn.functional
nn = torch.nn


def torchvision():
    """torchvision's models; its compiled operators, which they do not use, may fail.

    Beside PyTorch's CPU build the wheel cannot load them, and then misses two names.
    """
    try:
        import torchvision.models
    except RuntimeError:
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
        globals()["_kept"] = operators
        import torchvision.models
    return torchvision.models


def timm():
    torchvision()
    return pytest.importorskip("timm", reason="needs the extra `torch`")


def randomize(model, seed=0):
    """Random parameters and statistics under which a deep network keeps its scale."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            value = 1 + 0.5 * noise.tanh()
        elif tensor.ndim > 1 and name.endswith("weight"):
            value = noise / tensor[0].numel() ** 0.5
        elif name.endswith("weight"):
            value = 1 + 0.2 * noise.tanh()
        else:
            value = 0.1 * noise
        state[name] = value
    model.load_state_dict(state)
    return model.eval()


class CaffeInception(nn.Module):
    """1x1, 3x3, 5x5 and pooling side by side, without normalisation."""

    def __init__(self, channels, single, r3, c3, r5, c5, pool):
        super().__init__()
        self.c1 = nn.Conv2d(channels, single, 1)
        self.r3, self.c3 = nn.Conv2d(channels, r3, 1), nn.Conv2d(r3, c3, 3, padding=1)
        self.r5, self.c5 = nn.Conv2d(channels, r5, 1), nn.Conv2d(r5, c5, 5, padding=2)
        self.pool = nn.Conv2d(channels, pool, 1)

    def forward(self, x):
        pooled = functional.max_pool2d(x, 3, 1, 1)
        return torch.cat(
            [
                self.c1(x).relu(),
                self.c3(self.r3(x).relu()).relu(),
                self.c5(self.r5(x).relu()).relu(),
                self.pool(pooled).relu(),
            ],
            1,
        )


# Caffe's name of each convolution of a block above.
CAFFE_NAMES = {
    "c1": "1x1", "r3": "3x3_reduce", "c3": "3x3", "r5": "5x5_reduce", "c5": "5x5",
    "pool": "pool_proj",
}  # fmt: skip


class CaffeGoogLeNet(nn.Module):
    """GoogLeNet of the paper: feature map of the last inception block."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.conv2, self.conv3 = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 192, 3, padding=1)
        self.i3a = CaffeInception(192, 64, 96, 128, 16, 32, 32)
        self.i3b = CaffeInception(256, 128, 128, 192, 32, 96, 64)
        self.i4a = CaffeInception(480, 192, 96, 208, 16, 48, 64)
        self.i4b = CaffeInception(512, 160, 112, 224, 24, 64, 64)
        self.i4c = CaffeInception(512, 128, 128, 256, 24, 64, 64)
        self.i4d = CaffeInception(512, 112, 144, 288, 32, 64, 64)
        self.i4e = CaffeInception(528, 256, 160, 320, 32, 128, 128)
        self.i5a = CaffeInception(832, 256, 160, 320, 32, 128, 128)
        self.i5b = CaffeInception(832, 384, 192, 384, 48, 128, 128)

    def forward(self, x):
        return self.behind(self.shared(x))

    def shared(self, x):
        """Up to pool3."""
        respond = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)

        x = respond(self.halved(self.conv1(x).relu()))
        x = self.halved(respond(self.conv3(self.conv2(x).relu()).relu()))
        return self.halved(self.i3b(self.i3a(x)))

    def behind(self, x):
        """From inception 4a."""
        x = self.i4e(self.i4d(self.i4c(self.i4b(self.i4a(x)))))
        return self.i5b(self.i5a(self.halved(x)))

    @staticmethod
    def halved(x):
        return functional.max_pool2d(x, 3, 2, ceil_mode=True)

    def caffe_state(self, separator="/"):
        """The parameters under the names of the Caffe model."""
        heads = {
            "conv1": f"conv1{separator}7x7_s2",
            "conv2": f"conv2{separator}3x3_reduce",
            "conv3": f"conv2{separator}3x3",
        }
        named = {}
        for name, tensor in self.state_dict().items():
            block, *rest = name.split(".")
            if block in heads:
                caffe = heads[block]
            else:
                caffe = f"inception_{block[1:]}{separator}{CAFFE_NAMES[rest[0]]}"
            named[f"{caffe}.{rest[-1]}"] = tensor
        return named


# Single; 3x3 reduce and 3x3; double reduce and double; projection.
BN_INCEPTION = {
    "3a": (192, 64, 64, 64, 64, 96, 32), "3b": (256, 64, 64, 96, 64, 96, 64),
    "3c": (320, 0, 128, 160, 64, 96, 0), "4a": (576, 224, 64, 96, 96, 128, 128),
    "4b": (576, 192, 96, 128, 96, 128, 128), "4c": (576, 160, 128, 160, 128, 160, 128),
    "4d": (608, 96, 128, 192, 160, 192, 128), "4e": (608, 0, 128, 192, 192, 256, 0),
    "5a": (1056, 352, 192, 320, 160, 224, 128),
    "5b": (1024, 352, 192, 320, 192, 224, 128),
}  # fmt: skip


class BNInception(nn.Module):
    """BN-Inception under the names of the port that its weights come from."""

    def __init__(self):
        super().__init__()
        self._unit("conv1_7x7_s2", 3, 64, 7, 2)
        self._unit("conv2_3x3_reduce", 64, 64, 1)
        self._unit("conv2_3x3", 64, 192, 3)
        for name, (channels, single, r3, c3, r33, c33, pool) in BN_INCEPTION.items():
            stride = 1 if single else 2
            if single:
                self._unit(f"inception_{name}_1x1", channels, single, 1)
                self._unit(f"inception_{name}_pool_proj", channels, pool, 1)
            self._unit(f"inception_{name}_3x3_reduce", channels, r3, 1)
            self._unit(f"inception_{name}_3x3", r3, c3, 3, stride)
            self._unit(f"inception_{name}_double_3x3_reduce", channels, r33, 1)
            self._unit(f"inception_{name}_double_3x3_1", r33, c33, 3)
            self._unit(f"inception_{name}_double_3x3_2", c33, c33, 3, stride)
        self.last_linear = nn.Linear(1024, 1000)

    def _unit(self, name, channels, width, side, stride=1):
        conv = nn.Conv2d(channels, width, side, stride, side // 2)
        setattr(self, name, conv)
        setattr(self, f"{name}_bn", nn.BatchNorm2d(width))

    def _apply_unit(self, name, x):
        return getattr(self, f"{name}_bn")(getattr(self, name)(x)).relu()

    def forward(self, x):
        x = functional.max_pool2d(
            self._apply_unit("conv1_7x7_s2", x), 3, 2, ceil_mode=True
        )
        x = self._apply_unit("conv2_3x3", self._apply_unit("conv2_3x3_reduce", x))
        x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        for name, (_, single, *_) in BN_INCEPTION.items():

            def unit(part, x, name=name):
                return self._apply_unit(f"inception_{name}_{part}", x)

            if not single:
                pooled = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            elif name == "5b":
                pooled = functional.max_pool2d(x, 3, 1, 1, ceil_mode=True)
            else:
                pooled = functional.avg_pool2d(x, 3, 1, 1, ceil_mode=True)
            double = unit("double_3x3_1", unit("double_3x3_reduce", x))
            branches = [
                unit("3x3", unit("3x3_reduce", x)),
                unit("double_3x3_2", double),
                unit("pool_proj", pooled) if single else pooled,
            ]
            if single:
                branches.insert(0, unit("1x1", x))
            x = torch.cat(branches, 1)
        return x
