"""Twenty small mistakes, each of which the tests must find.

    python tests/mutations.py [NAME ...]

copies the repository to a temporary directory, makes one mistake at a time in the copy
and runs the tests that should find it, with `-x`: once before, when they must pass, and
once with the mistake. A mistake is a file, a text that it
holds exactly once, the text in its place, and the tests: a file or a node id of pytest,
with options behind. Not collected by pytest: the twenty take minutes.

Exit code: 1 if a mistake survives its tests or its text is not found, otherwise 0. Add
a mistake when you add something that is easily wrong by a sign, an axis or a mask.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("metricjax", "tests", "configs", "pyproject.toml")
# Of pytest: tests failed. Any other failure, as of collecting, finds nothing.
FAILED = 1


class Mutation(NamedTuple):
    """One mistake: `old` becomes `new` in `file`, and `tests` must fail."""

    file: str
    old: str
    new: str
    tests: str


LOSSES, DATA = "metricjax/losses/", "metricjax/data/samplers/"
METRICS, CHECKPOINTS = "metricjax/evaluation/", "metricjax/training/checkpoints.py"
MUTATIONS = {
    "contrastive: sign of the margin": Mutation(
        LOSSES + "contrastive.py",
        "    hinges = jax.nn.relu(margin - distances)",
        "    hinges = jax.nn.relu(distances - margin)",
        "tests/losses/test_contrastive.py -k adjacent_pairs_equal",
    ),
    "contrastive: pairs start one row late": Mutation(
        LOSSES + "contrastive.py",
        "    same = labels[0::2] == labels[1::2]",
        "    same = labels[0::2] == jnp.roll(labels, -1)[1::2]",
        "tests/losses/test_contrastive.py -k adjacent_pairs_equal",
    ),
    "triplet: positive and negative swapped": Mutation(
        LOSSES + "triplet.py",
        "jax.nn.relu(gap + margin)",
        "jax.nn.relu(margin - gap)",
        "tests/losses/test_triplet.py -k value_and_gradient",
    ),
    "triplet: mean over all anchors": Mutation(
        LOSSES + "_kernels/mining.py",
        "masked_mean(cost(far - near), valid)",
        "masked_mean(cost(far - near), jnp.ones_like(valid))",
        "tests/losses/test_triplet.py",
    ),
    "n-pair: half the weight of the lengths": Mutation(
        LOSSES + "n_pair.py",
        "l2_weight / 2.0 * masked_mean",
        "l2_weight / 4.0 * masked_mean",
        "tests/losses/test_n_pair.py -k value_and_gradient",
    ),
    "proxy-NCA: scale of the cosine": Mutation(
        LOSSES + "proxies.py",
        "similarities * (2.0 / temperature)",
        "similarities * (1.0 / temperature)",
        "tests/losses/test_proxies.py -k 'value_and_gradient or twice'",
    ),
    "proxy-anchor: sign of the margin": Mutation(
        LOSSES + "proxies.py",
        "to_others = scale * (similarities + margin)",
        "to_others = scale * (similarities - margin)",
        "tests/losses/test_proxies.py -k value_and_gradient",
    ),
    "proxies: made unit along the wrong axis": Mutation(
        LOSSES + "proxies.py",
        "numerics.unit(proxies.astype(jnp.float32))",
        "numerics.unit(proxies.astype(jnp.float32).T).T",
        "tests/losses/test_proxies.py -k value_and_gradient",
    ),
    "divergence: each pair twice, and learners with themselves": Mutation(
        LOSSES + "divergence.py",
        "np.triu(np.ones((width, width), bool), 1)",
        "np.ones((width, width), bool)",
        "tests/losses/test_divergence.py -k value_and_gradient",
    ),
    "memory: gradient into old rows": Mutation(
        "metricjax/objectives/cross_batch_memory.py",
        "jax.lax.stop_gradient(new).astype",
        "new.astype",
        "tests/objectives/test_cross_batch_memory.py -k no_gradient",
    ),
    "retrieval: the query counts as its own neighbour": Mutation(
        METRICS + "retrieval.py",
        "    return counts - own",
        "    return counts",
        "tests/evaluation/test_retrieval.py -k equals_a_full_sort",
    ),
    "retrieval: precision off by one": Mutation(
        METRICS + "retrieval.py",
        "(chance * hits / (positions + 1))",
        "(chance * hits / np.maximum(positions, 1))",
        "tests/evaluation/test_retrieval.py -k equals_a_full_sort",
    ),
    "retrieval: ties in the order found": Mutation(
        METRICS + "retrieval.py",
        "ranked.similarities[:, 1:] != ranked.similarities[:, :-1]",
        "ranked.similarities[:, 1:] <= ranked.similarities[:, :-1]",
        "tests/evaluation/test_retrieval.py -k ties_count",
    ),
    "retrieval: no bound at R": Mutation(
        METRICS + "retrieval.py",
        "inside = positions < relevant[:, None]",
        "inside = positions <= relevant[:, None]",
        "tests/evaluation/test_retrieval.py -k equals_a_full_sort",
    ),
    "verification: pairs above a bin, from below": Mutation(
        METRICS + "verification.py",
        "sums = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]",
        "sums = np.cumsum(counts, axis=1)",
        "tests/evaluation/test_verification.py -k equals_brute_force",
    ),
    "averages: a class by its sum": Mutation(
        METRICS + "averages.py",
        "np.bincount(dense, values, minlength=len(label)) / queries",
        "np.bincount(dense, values, minlength=len(label)) / len(label)",
        "tests/evaluation/test_retrieval.py -k every_class_counts",
    ),
    "sampler: a draw starts one item late": Mutation(
        DATA + "decks.py",
        "first = self._deck(e, k)[start : start + k]",
        "first = self._deck(e, k)[start + 1 : start + 1 + k]",
        "tests/data/samplers/test_decks.py",
    ),
    "sampler: tails not left out of the next head": Mutation(
        DATA + "decks.py",
        "        candidates[tail_before] = False\n",
        "",
        "tests/data/samplers/test_decks.py",
    ),
    "checkpoints: the worst is the best": Mutation(
        CHECKPOINTS,
        "key=lambda s: (scores[s], s), reverse=True",
        "key=lambda s: (scores[s], s)",
        "tests/training/test_checkpoints.py -k 'best_is or two_and_the_best'",
    ),
    "checkpoints: the digest leaves out the bytes": Mutation(
        CHECKPOINTS,
        "        sha.update(array.tobytes())\n",
        "",
        "tests/training/test_checkpoints.py -k digest_sees",
    ),
}


def outcome(mutation: Mutation, tree: Path) -> str:
    """Make the mistake in a copy of the repository, run its tests, take it back.

    Returns:
      "killed", "survived", or why neither can be said.
    """
    path = tree / mutation.file
    if not path.exists():
        return f"there is no {mutation.file}"
    text = path.read_text(encoding="utf-8")
    times = text.count(mutation.old)
    if times != 1:
        return f"the old text is there {times} times in {mutation.file}"
    # The control: tests that fail without the mistake find nothing.
    code = run_tests(mutation.tests, tree)
    if code:
        return f"its tests end with code {code} without the mistake"
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code = run_tests(mutation.tests, tree)
    finally:
        path.write_text(text, encoding="utf-8")
    if code == FAILED:
        return "killed"
    return "survived" if code == 0 else f"pytest ended with code {code}"


def run_tests(tests: str, tree: Path) -> int:
    """The exit code of pytest in a copy of the repository."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    # The copy comes before an installed package. Bytecode is not written: it would be
    # taken for that of the next mistake if the file has the same size and second.
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, "-m", "slow or not slow", *shlex.split(tests)],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).returncode


def copy_repository(tree: Path) -> None:
    """Copy to `tree` what the tests of a mistake need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            shutil.copy(source, tree / name)


def main(names: list[str]) -> int:
    """Print an outcome a line; 1 unless all mistakes were found."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        copy_repository(tree)
        for name in names or MUTATIONS:
            found[name] = outcome(MUTATIONS[name], tree)
            print(f"{name}: {found[name]}", flush=True)
    killed = sum(text == "killed" for text in found.values())
    print(f"{killed} of {len(found)} killed")
    return int(killed < len(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
