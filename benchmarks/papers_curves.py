"""The same training in PyTorch with pytorch-metric-learning and here.

    pip install -e '.[torch]'
    python benchmarks/papers_curves.py --root DIR [--seeds 0,1,2]

One network from the same first weights, the same batches in the same order, the same
loss (multi-similarity with its miner), AdamW and schedule: Recall@1 of Omniglot's
unseen classes along the way, and the time of the training steps to get there. Each
training is a process of its own, one after the other. What is done stands in
results/papers/curves.jsonl, one line a training; the same command goes on.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import harness
import numpy as np

RESULTS = Path(__file__).parent / "results" / "papers"
SIDES = ("metricjax", "PyTorch, eager", "PyTorch, torch.compile")
EVERY = 50
REACHED = (0.3, 0.4, 0.5, 0.55)


def setting(seed, root):
    """The run that both sides start from, and all its batches."""
    import papers

    from metricjax.data import pipeline, transforms
    from metricjax.runtime import mesh
    from metricjax.training.run import Run, open_data

    config = papers._config("ee", "multi_similarity", "omniglot", root / "omniglot.zip")
    adamw = replace(config.optimizer, method="adamw")  # both sides have it
    config = replace(config, seed=seed, optimizer=adamw)
    mesh.keep_freed_memory()
    run = Run.build(config, Path("."), open_data(config), mesh.make_mesh())
    with pipeline.train_batches(
        run.train, run.sampler, run.transform, seed=seed, start_step=0,
        num_steps=config.steps,
    ) as made:  # fmt: skip
        batches = [{n: b[n] for n in ("images", "labels")} for b in made]
    test, about = run.dataset.test, config.data.transform
    with pipeline.test_batches(test, run.transform, 256) as made:
        images = np.concatenate([b["images"] for b in made])[: len(test)]

    def normalized(images):
        return np.asarray(transforms.normalize(images, about))

    return run, batches, images, normalized


class Ours:
    """metricjax's own training step."""

    def __init__(self, run, batches, normalized):
        import jax

        from metricjax.runtime import mesh

        self._run = run
        self._state = run.init_state()
        self._program, cost = run.compile_train_step()
        self.first = cost["compile_seconds"]
        self._batches = [
            mesh.global_batch(run.programs.mesh, batch) for batch in batches
        ]
        self._apply = jax.jit(
            lambda variables, images: (
                run.programs.model.apply(variables, images).embedding
            )
        )

    def step(self, number):
        import jax

        self._state, metrics = self._program(
            self._state, self._batches[number], self._run.programs.root_key
        )
        jax.block_until_ready(metrics)

    def embed(self, images):
        return np.asarray(self._apply(self._state.variables, images))


class Theirs:
    """The same in PyTorch, channels_last."""

    def __init__(self, run, batches, normalized, compiled):
        import torch
        from losses_pml import pair_loss
        from torch import nn
        from torch.nn import functional
        from train_step_torch import ConvNet

        from metricjax import optimizers
        from metricjax.runtime import mesh

        variables, config = mesh.to_host(run.init_state().variables), run.config
        network = ConvNet(1, config.model.widths)
        linear = nn.Linear(config.model.widths[-1], config.model.dim, bias=False)
        _copy(variables["params"], network, linear)
        self._model = nn.ModuleList([network, linear])
        self._model.to(memory_format=torch.channels_last)
        self._batches = [
            (self._images(normalized(batch["images"])),
             torch.from_numpy(batch["labels"]).long())
            for batch in batches
        ]  # fmt: skip
        decayed = [p for p in self._model.parameters() if p.ndim > 1]
        others = [p for p in self._model.parameters() if p.ndim == 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.optimizer.weight_decay},
             {"params": others, "weight_decay": 0.0}],
        )  # fmt: skip
        self._rate = optimizers.schedule(config.optimizer, config.steps)
        criterion = pair_loss("multi_similarity")

        def embed(images):
            features = network(images).mean((2, 3))
            return functional.normalize(linear(features))

        self._eager, self._criterion = embed, criterion
        self._embed = torch.compile(embed) if compiled else embed
        self._model.train()
        began = time.perf_counter()
        if compiled:  # on a batch that moves neither weights nor statistics
            state = {k: v.clone() for k, v in self._model.state_dict().items()}
            criterion(self._embed(self._batches[0][0]), self._batches[0][1]).backward()
            self._model.load_state_dict(state)
            self._optimizer.zero_grad()
        self.first = time.perf_counter() - began

    def step(self, number):
        images, labels = self._batches[number]
        for group in self._optimizer.param_groups:
            group["lr"] = float(self._rate(number))
        self._optimizer.zero_grad(set_to_none=True)
        self._criterion(self._embed(images), labels).backward()
        self._optimizer.step()

    def embed(self, images):
        import torch

        self._model.eval()
        with torch.no_grad():
            found = self._eager(self._images(images)).numpy()
        self._model.train()
        return found

    @staticmethod
    def _images(images):
        import torch

        images = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2))
        return images.contiguous(memory_format=torch.channels_last)


def _copy(params, network, linear):
    """Our first weights into the PyTorch network."""
    import torch

    backbone = params["backbone"]
    units = {"stem": network.stem}
    for stage, (down, rest) in enumerate(zip(network.down, network.units, strict=True)):
        units[f"down{stage}"] = down
        units |= {f"stage{stage}_{index}": unit for index, unit in enumerate(rest)}
    with torch.no_grad():
        for name, (convolution, norm, _) in units.items():
            kernel = backbone[name]["kernel"].transpose(3, 2, 0, 1)
            convolution.weight.copy_(torch.from_numpy(kernel))
            norm.weight.copy_(torch.from_numpy(backbone[f"{name}_bn"]["scale"]))
            norm.bias.copy_(torch.from_numpy(backbone[f"{name}_bn"]["bias"]))
        linear.weight.copy_(torch.from_numpy(params["fc_S"]["kernel"].T))


def train(side, seed, root):
    """One training: Recall@1 and seconds of training steps, every `EVERY` steps."""
    from metricjax.inference import evaluate_split
    from metricjax.inference.embedder import Embedded

    run, batches, images, normalized = setting(seed, root)
    if side == SIDES[0]:
        task = Ours(run, batches, normalized)
    else:
        task = Theirs(run, batches, normalized, side.endswith("compile"))
    test, spent, points = run.dataset.test, 0.0, []
    for done in range(len(batches) + 1):
        if done % EVERY == 0:
            rows = [
                task.embed(normalized(images[first : first + 1000]))
                for first in range(0, len(images), 1000)
            ]
            embedded = Embedded(np.concatenate(rows), np.ones(len(images), bool))
            found = evaluate_split.evaluate(
                embedded, test, run.config.evaluation, bootstrap=0
            )
            points.append([done, spent, found["recall@1"]])
        if done < len(batches):
            began = time.perf_counter()
            task.step(done)
            spent += time.perf_counter() - began
    machine = harness.machine("python benchmarks/papers_curves.py")
    names = ("commit", "cpu", "jax", "torch", "pytorch-metric-learning", "date")
    return {
        "side": side, "seed": seed, "points": points, "first_s": task.first,
        **{name: machine[name] for name in names},
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("."))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "SEED"))
    options = parser.parse_args()
    if options.one:
        side, seed = options.one
        print(json.dumps(train(side, int(seed), options.root)))
        return
    path = RESULTS / "curves.jsonl"
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(line["side"], line["seed"]) for line in map(json.loads, lines)}
    for seed in map(int, options.seeds.split(",")):
        for side in SIDES:
            if (side, seed) in done:
                continue
            command = [sys.executable, __file__, "--root", options.root, "--one"]
            command = [*map(str, command), side, str(seed)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            line = out.stdout.splitlines()[-1]
            with path.open("a") as file:
                file.write(line + "\n")
            last = json.loads(line)["points"][-1]
            print(f"{side}, seed {seed}: Recall@1 {last[2]:.3f}, {last[1]:.1f} s")
    write(path)


def write(path):
    """The table of the lines, and the curves."""
    import papers_figures

    runs = [json.loads(line) for line in path.read_text().splitlines()]
    path.with_suffix(".md").write_text(markdown(runs))
    papers_figures.draw_curves(_by_side(runs), path.with_suffix(".svg"))


def _by_side(runs):
    found = {side: [r for r in runs if r["side"] == side] for side in SIDES}
    return {side: own for side, own in found.items() if own}


def markdown(runs):
    from metricjax.evaluation.intervals import t_interval

    about = runs[-1]
    of = _by_side(runs)
    steps = [done for done, _, _ in about["points"]]

    def shown(values):
        values = np.array(values)
        if len(values) < 2:
            return f"{values[0]:.1f}"
        low, high = t_interval(values)
        return f"{values.mean():.1f} ({low:.1f} to {high:.1f})"

    def row(name, cells):
        return f"| {name} | {' | '.join(cells)} |"

    lines = [
        "# The same training in PyTorch and here",
        "",
        f"`python benchmarks/papers_curves.py --root DIR`, {about['cpu']}; commit "
        f"{about['commit']}, jax {about['jax']}, torch {about['torch']}, "
        f"pytorch-metric-learning {about['pytorch-metric-learning']}. Omniglot at 28 "
        "pixels, batches of 64, multi-similarity loss, from the same first weights on "
        f"the same batches; seeds {', '.join(str(r['seed']) for r in of[SIDES[0]])}. "
        "Means with 95% t-intervals over seeds.",
        "",
        "![Recall@1 by steps and by seconds](curves.svg)",
        "",
        row("Recall@1, points, after step", of),
        "|---" * (len(of) + 1) + "|",
    ]
    for index, done in enumerate(steps):
        values = [[100 * r["points"][index][2] for r in found] for found in of.values()]
        lines.append(row(str(done), map(shown, values)))
    lines += ["", row("seconds of training steps", of), "|---" * (len(of) + 1) + "|"]
    for wanted in REACHED:
        cells = []
        for found in of.values():
            times = [_time_to(r["points"], wanted) for r in found]
            cells.append(shown(times) if None not in times else "not reached")
        lines.append(row(f"to Recall@1 {100 * wanted:.0f}", cells))
    whole = [[r["points"][-1][1] for r in found] for found in of.values()]
    lines.append(row("all steps", map(shown, whole)))
    first = [f"{max(r['first_s'] for r in found):.1f}" for found in of.values()]
    lines.append(row("compiling, besides, at most", first))
    return "\n".join(lines) + "\n"


def _time_to(points, wanted):
    """Seconds at which a curve of straight pieces first reaches a Recall@1."""
    for (_, before, low), (_, after, high) in zip(points, points[1:], strict=False):
        if high >= wanted:
            share = (wanted - low) / (high - low) if low < wanted else 0.0
            return before + share * (after - before)
    return None


if __name__ == "__main__":
    main()
