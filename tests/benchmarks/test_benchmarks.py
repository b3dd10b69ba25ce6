"""The benchmarks compare like with like, and their harness tells what happened."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from paths import BENCHMARKS

sys.path.insert(0, str(BENCHMARKS))

import harness  # noqa: E402
import losses_cases  # noqa: E402
import losses_ours  # noqa: E402
import losses_report  # noqa: E402

# One case of every loss: more classes or points are the same code.
NAMES = [name for name in losses_cases.CASES if not name.endswith(("_11318", "_8"))]
NAMES.append("hierarchical_proxy_11318")


@pytest.mark.parametrize("name", NAMES)
def test_all_variants_agree(name):
    """Value and gradient of PyTorch, pytorch-metric-learning and ours at batch 32."""
    losses_torch = pytest.importorskip("losses_torch")
    losses_pml = pytest.importorskip("losses_pml")
    case = losses_cases.CASES[name]
    inputs = losses_cases.inputs(case, 32)
    tasks = {
        "eager": lambda: losses_torch.Task(case, inputs, "eager"),
        "gram_eager": lambda: losses_torch.Task(case, inputs, "gram_eager"),
        "pml": lambda: losses_pml.Task(case, inputs),
        "ours": lambda: losses_ours.Task(case, inputs),
    }
    results = {}
    for variant in losses_cases.variants(case):
        if variant in tasks:
            task = tasks[variant]()
            task.step()
            results[variant] = task.result()
    assert len(results) > 1 and np.abs(results["eager"]["value"]).max() > 1e-4
    for variant, result in results.items():
        apart = losses_cases.distance(case, inputs.leaves, result, results["eager"])
        assert apart < 1e-4, variant


def test_precision_of_embeddings_close_together():
    pytest.importorskip("losses_pml")
    precision = importlib.import_module("precision")
    apart, close = (precision.errors("triplet_all", 32, s) for s in (1.0, 0.003))
    assert max(apart.values()) < 1e-5 and close["ours"] < 1e-5
    assert min(close["PML"], close["torch"]) > 1e-3


def test_disagreement_is_seen():
    """Along a unit vector a gradient may differ where proxies are made unit alone."""
    contrastive = losses_cases.CASES["contrastive"]
    proxies = losses_cases.CASES["proxy_nca_100"]
    leaves = [np.eye(3, 4)]
    right = {"value": np.float32(2.0), "gradient0": np.ones((3, 4))}
    along = {**right, "gradient0": np.ones((3, 4)) + 0.5 * leaves[0]}
    assert losses_cases.distance(proxies, leaves, along, right) == 0
    assert losses_cases.distance(contrastive, leaves, along, right) == 0.5
    value = {**right, "value": np.float32(2.2)}
    assert losses_cases.distance(proxies, leaves, value, right) == pytest.approx(0.1)
    broken = {**right, "gradient0": np.full((3, 4), np.nan)}
    assert losses_cases.distance(contrastive, leaves, broken, right) == np.inf


def products(**changes):
    return {
        "program": "matmuls.py",
        "library": "numpy",
        "rows": 8,
        "columns": 8,
        "dim": 4,
        "device": "cpu",
        "compiles": False,
        **changes,
    }


def test_workers_take_turns(tmp_path):
    pace = harness.Pace(rounds=2, turn=0.0, least=2)
    specs = {"one": products(), "two": products(rows=16)}
    results = harness.measure(specs, pace, saved=tmp_path)
    for name, result in results.items():
        assert result["rounds"] == 2 and result["steps"] == 4
        assert 0 < result["min_ms"] <= result["median_ms"]
        assert 5 < result["resident_mib"] <= result["peak_mib"] < 2000
        assert np.load(tmp_path / f"{name}.npz")["seconds"].shape == (3,)


@pytest.mark.parametrize("together", [True, False])
def test_what_a_worker_cannot_do_is_an_answer(together):
    specs = {
        "large": products(rows=2**21, columns=2**21, memory_cap=4 * harness.GIB),
        "wrong": products(library="numpy", dim="four"),
        "right": products(),
    }
    pace = harness.Pace(rounds=1, step_cap=0.2, together=together)
    results = harness.measure({"slow": products()}, pace)
    assert results["slow"]["error"] == "> 0 s"
    pace = harness.Pace(rounds=1, together=together)
    results = harness.measure(specs, pace)
    assert results["large"]["error"] == "memory"
    assert results["wrong"]["error"].startswith("TypeError")
    assert results["right"]["median_ms"] > 0


def test_no_worker_outlives_its_parent():
    """Killed without a word, while its worker is stopped."""
    program = f"""
import sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
import harness
worker = harness.Worker({products()!r})
worker.wait_ready()
print(worker.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    worker = Path(f"/proc/{int(parent.stdout.readline())}")
    assert worker.exists()
    parent.kill()
    parent.communicate()
    for _ in range(100):
        if not worker.exists() or " Z " in (worker / "stat").read_text():
            return
        time.sleep(0.1)
    pytest.fail("the worker still lives")


def test_command_writes_rows_and_goes_on(tmp_path):
    rows = tmp_path / "rows.jsonl"
    command = [sys.executable, BENCHMARKS / "losses.py", "--json", rows, "--quick"]
    command += ["--variants", "ours", "--losses"]

    def run(*more):
        done = subprocess.run([*command, *more], capture_output=True, text=True)
        entries = [json.loads(line) for line in rows.read_text().splitlines()]
        return done, [entry["case"] for entry in entries if entry["kind"] == "row"]

    done, cases = run("divergence")
    assert done.returncode == 0 and cases == ["divergence"], done.stderr
    assert "[1/1] divergence 128: ours" in done.stdout
    done, cases = run("divergence")
    assert done.returncode == 2 and "add --resume" in done.stderr
    done, cases = run("divergence,softmax_cross_entropy_100", "--resume")
    assert cases == ["divergence", "softmax_cross_entropy_100"]


def test_table_says_what_could_not_be_done(tmp_path):
    good = {"median_ms": 8.0, "min_ms": 7.0, "first_s": 1.0, "peak_mib": 512.0}
    variants = {
        "pml": {"error": "memory"},
        "eager": {**good, "median_ms": 24.0},
        "compile": {"error": "> 75 s"},
        "ours": good,
    }
    machine = {"kind": "run", **harness.machine("python benchmarks/losses.py")}
    floor = {"kind": "products", "rows": 2048, "columns": 2048, "dim": 512}
    floor |= {"numpy": [0.002, 0.004, 0.001], "torch": [0.001, 0.003, 0.002]}
    row = {"kind": "row", "case": "triplet_all", "batch": 2048, "variants": variants}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(entry) for entry in (machine, floor, row)))
    assert losses_report.write([file], tmp_path) == 0
    text = (tmp_path / "losses.md").read_text()
    cells = (
        "| triplet_all | cannot: memory | 24 (7) | > 75 s | 8 (7) | 5 | - | 3 | 1.6 |"
    )
    assert cells in text
    assert "| triplet_all | - / - | 0.50 / 1 | - / - | 0.50 / 1 |" in text
    assert (tmp_path / "losses.png").stat().st_size > 5000
