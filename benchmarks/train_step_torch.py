"""The same training steps in PyTorch: channels_last, eager or compiled, autocast."""

import sys
from contextlib import nullcontext
from pathlib import Path

import harness
import losses_torch
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from train_step_cases import CASES, CLASSES, LEARNING_RATE, MOMENTUM, inputs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import torch_models


class CGD(nn.Module):
    """ResNet-50 without stage 4's downsampling, MAC and GeM, 1,536 numbers."""

    def __init__(self):
        super().__init__()
        net = torch_models.torchvision().resnet50(weights=None)
        net.layer4[0].conv2.stride = net.layer4[0].downsample[0].stride = (1, 1)
        self.stages = nn.Sequential(
            net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2,
            net.layer3, net.layer4,
        )  # fmt: skip
        self.mac, self.gem = (nn.Linear(2048, 768, bias=False) for _ in range(2))
        self.norm, self.classifier = nn.BatchNorm1d(2048), nn.Linear(2048, CLASSES)

    def forward(self, images):
        features = self.stages(images).float()
        largest = features.amax((2, 3))
        powers = features.clamp_min(1e-6).pow(3).mean((2, 3)).pow(1 / 3)
        parts = [
            functional.normalize(linear(descriptor))
            for linear, descriptor in ((self.mac, largest), (self.gem, powers))
        ]
        embedding = functional.normalize(torch.cat(parts, 1))
        return embedding, self.classifier(self.norm(largest))


class Pooled(nn.Module):
    """A network, the mean of its map, a linear map, unit length."""

    def __init__(self, network, channels, dim):
        super().__init__()
        self.network, self.linear = network, nn.Linear(channels, dim)

    def forward(self, images):
        features = self.network(images)
        if features.ndim == 4:
            features = features.mean((2, 3))
        return functional.normalize(self.linear(features.float())), None


class Tokens(nn.Module):
    """The class token of timm's ViT-S/16."""

    def __init__(self):
        super().__init__()
        self.network = torch_models.timm().create_model("vit_small_patch16_224")

    def forward(self, images):
        return self.network.forward_features(images)[:, 0]


class ABE(nn.Module):
    """ABE-8 on GoogLeNet; the learners are one batch, as ours are."""

    learners = 8

    def __init__(self):
        super().__init__()
        net, other = torch_models.CaffeGoogLeNet(), torch_models.CaffeGoogLeNet()
        self.net = net
        blocks = (other.i4a, other.i4b, other.i4c, other.i4d, other.i4e)
        self.trunk = nn.Sequential(*blocks)
        self.masks = nn.Conv2d(832, self.learners * 480, 1)
        self.linear = nn.Linear(1024, 512 // self.learners)

    def forward(self, images):
        shared = self.net.shared(images)
        masks = self.masks(self.trunk(shared)).sigmoid()
        masks = masks.unflatten(1, (self.learners, 480))
        masked = (shared[:, None] * masks).flatten(0, 1)
        features = self.net.behind(masked).mean((2, 3)).float()
        each = functional.normalize(self.linear(features))
        return each.unflatten(0, (-1, self.learners)), None


class ConvNet(nn.Module):
    """Ours: a strided stem, stages of x + relu(bn(conv(x)))."""

    def __init__(self, channels, widths=(32, 64, 128), depth=2):
        super().__init__()
        stem, *stages = widths
        self.stem = self._unit(channels, stem, 5, 2)
        self.down, self.units = nn.ModuleList(), nn.ModuleList()
        for before, width in zip(widths, stages, strict=False):
            self.down.append(self._unit(before, width, 3, 2))
            units = [self._unit(width, width, 3, 1) for _ in range(depth)]
            self.units.append(nn.ModuleList(units))

    def _unit(self, before, width, side, stride):
        conv = nn.Conv2d(before, width, side, stride, side // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, images):
        features = self.stem(images)
        for down, units in zip(self.down, self.units, strict=True):
            features = down(features)
            for unit in units:
                features = features + unit(features)
        return features


MODELS = {
    "resnet50_cgd": CGD,
    "bn_inception": lambda: Pooled(torch_models.BNInception(), 1024, 512),
    "abe8": ABE,
    "vit_small": lambda: Pooled(Tokens(), 384, 384),
    "convnet64": lambda: Pooled(ConvNet(3), 128, 128),
    "convnet28": lambda: Pooled(ConvNet(1), 128, 128),
}


class Task:
    """The step of a case; `way` is "eager" or "compile", with "-bf16" autocast."""

    def __init__(self, name, batch, way, device):
        case = CASES[name]
        images, labels = inputs(case, batch)
        self._device, self._bf16 = device, way.endswith("bf16")
        images = torch.tensor(images.transpose(0, 3, 1, 2), device=device)
        self._images = images.contiguous(memory_format=torch.channels_last)
        self._labels = torch.tensor(labels.astype(np.int64), device=device)
        model = MODELS[name]().to(device, memory_format=torch.channels_last).train()
        self._optimizer = torch.optim.SGD(
            model.parameters(), LEARNING_RATE, momentum=MOMENTUM
        )
        self._hard = losses_torch.prepare("triplet_hard", self._labels)
        self._done = None

        def loss():
            cast = torch.autocast(device, torch.bfloat16)
            with cast if self._bf16 else nullcontext():
                embedding, logits = model(self._images)
            embedding = embedding.float()
            if embedding.ndim == 3:
                return _ensemble(embedding, self._labels)
            value = losses_torch.triplet_hard(embedding, self._hard)
            if logits is None:
                return value
            return value + functional.cross_entropy(logits.float(), self._labels)

        self._loss = torch.compile(loss) if way.startswith("compile") else loss

    def step(self):
        self._optimizer.zero_grad(set_to_none=True)
        value = self._loss()
        value.backward()
        self._optimizer.step()
        self._value = value.detach()
        if self._device == "cuda":
            before, self._done = self._done, torch.cuda.Event()
            self._done.record()
            if before:
                before.synchronize()

    def result(self):
        return {"value": np.asarray(float(self._value))}

    def device_peak(self):
        if self._device == "cpu":
            return None
        return torch.cuda.max_memory_allocated()


def _ensemble(learners, labels):
    """Contrastive loss of every learner over all pairs, and the divergence."""
    squared = torch.cdist(learners.transpose(0, 1), learners.transpose(0, 1)).square()
    same = labels[:, None] == labels
    count = len(labels) * (len(labels) - 1)
    pairs = torch.where(same, squared, (1 - squared).relu()).sum() / count
    own = torch.cdist(learners, learners).square()
    above = torch.ones(own.shape[1:], device=own.device).triu(1)
    return pairs + ((1 - own).relu() * above).sum((1, 2)).mean()


if __name__ == "__main__":
    harness.serve(
        lambda spec: Task(spec["case"], spec["batch"], spec["way"], spec["device"])
    )
