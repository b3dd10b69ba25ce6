"""What a run writes while it goes: metrics.jsonl, TensorBoard, the progress line."""

import json
import math
import sys
from types import SimpleNamespace

import pytest

from metricjax.errors import InputError
from metricjax.training.metric_writer import (
    Clock,
    MetricWriter,
    duration,
    keep_until,
    read_history,
)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_run(directory, steps, start=0):
    """A writer with a line per step."""
    with MetricWriter(directory, 10, start) as writer:
        for step in steps:
            writer.record(step, "train", {"loss": 1.0 / step})
    return directory / "metrics.jsonl"


def test_one_object_a_line(tmp_path):
    with MetricWriter(tmp_path, 10, 0) as writer:
        writer.record(1, "train", {"loss": 0.5, "active": 1.0})
        writer.record(1, "validation", {"recall@1": 0.25})
        # Readable while the run goes on.
        assert len(lines_of(tmp_path / "metrics.jsonl")) == 2
    assert lines_of(tmp_path / "metrics.jsonl") == [
        {"step": 1, "kind": "train", "loss": 0.5, "active": 1.0},
        {"step": 1, "kind": "validation", "recall@1": 0.25},
    ]


def test_values_that_are_not_finite_become_null(tmp_path):
    with MetricWriter(tmp_path, 10, 0) as writer:
        values = {"loss": math.nan, "gradient_norm": math.inf, "active": -math.inf}
        writer.record(1, "train", values)
        writer.progress(1, values, 0.0)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == {
        "step": 1,
        "kind": "train",
        "loss": None,
        "gradient_norm": None,
        "active": None,
    }


def test_warnings(tmp_path, capsys):
    """Said and written; a run that goes on before them meets them again."""
    with MetricWriter(tmp_path, 10, 0) as writer:
        writer.record(2, "train", {"loss": 0.5})
        writer.warn(2, "This [seems] wrong: mend it.")
    assert capsys.readouterr().out == "warning: This [seems] wrong: mend it.\n"
    warning = {"step": 2, "kind": "warning", "message": "This [seems] wrong: mend it."}
    assert lines_of(tmp_path / "metrics.jsonl")[1] == warning
    with MetricWriter(tmp_path, 10, 1):
        assert lines_of(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("start", [0, 1, 3, 6])
def test_a_resumed_run_cuts_what_it_will_do_again(tmp_path, start):
    path = write_run(tmp_path, range(1, 7))
    assert [line["step"] for line in lines_of(path)] == [1, 2, 3, 4, 5, 6]
    write_run(tmp_path, range(start + 1, 9), start)
    assert [line["step"] for line in lines_of(path)] == list(range(1, 9))


@pytest.mark.parametrize("keep", range(1, 40, 6))
def test_a_torn_last_line_is_dropped(tmp_path, keep):
    path = write_run(tmp_path, [1, 2])
    whole = path.read_bytes()
    last = whole.splitlines()[-1]
    path.write_bytes(whole + last[: min(keep, len(last) - 1)])
    assert [line["step"] for line in read_history(path)] == [1, 2]
    write_run(tmp_path, [3], start=2)
    assert [line["step"] for line in lines_of(path)] == [1, 2, 3]


def test_history_of_nothing(tmp_path):
    assert read_history(tmp_path / "none.jsonl") == []
    keep_until(tmp_path / "none.jsonl", 5)
    assert (tmp_path / "none.jsonl").read_text() == ""


def test_plain_lines_when_not_a_terminal(tmp_path, capsys):
    with MetricWriter(tmp_path, 200, 0) as writer:
        writer.say("a sentence with [brackets] that is " + "long " * 40)
        values = {
            "loss": 0.6935,
            "images_per_second": 1234.5,
            "data_wait": 0.031,
            "positive_distance": 0.5,
            "negative_distance": 1.25,
            "active": 0.75,
            "gradient_norm": 3.0,
        }
        writer.progress(20, values, 75)
        writer.validated(20, "map@r", 0.25)
        writer.progress(40, {"loss": 0.5}, 5)
    out = capsys.readouterr().out
    assert "\r" not in out and "\x1b" not in out
    assert out.splitlines() == [
        "a sentence with [brackets] that is " + "long " * 40,
        "step 20/200  loss 0.694  1,234 img/s  data-wait 3%  pos 0.50  neg 1.25  "
        "active 75%  eta 1m15s",
        "step 20/200  val map@r 0.250",
        "step 40/200  loss 0.500  eta 5s  val map@r 0.250",
    ]


def test_only_the_first_host_writes(tmp_path, capsys):
    with MetricWriter(tmp_path, 10, 0, active=False) as writer:
        writer.say("hello")
        writer.record(1, "train", {"loss": 0.5})
        writer.progress(1, {"loss": 0.5}, 1)
        writer.validated(1, "map@r", 0.5)
        writer.warn(1, "Something is wrong.")
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_files(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX import proto

    with MetricWriter(tmp_path, 10, 0) as writer:
        writer.record(3, "train", {"loss": 0.5})
        writer.record(3, "validation", {"recall@1": 0.25})
    files = list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert len(files) == 1
    found = {}
    content = files[0].read_bytes()
    while content:
        size = int.from_bytes(content[:8], "little")
        event = proto.event_pb2.Event.FromString(content[12 : 12 + size])
        content = content[size + 16 :]
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    assert found == {("train/loss", 3): 0.5, ("validation/recall@1", 3): 0.25}


def test_tensorboard_files_of_a_resumed_run(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    write_run(tmp_path, [1, 2, 3])
    monkeypatch.setattr("metricjax.training.metric_writer.os.getpid", lambda: 1)
    write_run(tmp_path, [2, 3], start=1)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("module", ["tensorboardX", None])
def test_a_full_disk_is_told_once(tmp_path, module, monkeypatch):
    if module is None:
        monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    else:
        pytest.importorskip(module)
    with pytest.raises(InputError, match="the disk is full") as caught:
        with MetricWriter(tmp_path, 10, 0) as writer:
            writer.record(1, "train", {"loss": 0.5})
            monkeypatch.setattr(writer, "_file", SimpleNamespace(write=full))
            writer.record(2, "train", {"loss": 0.5})
    assert str(tmp_path / "metrics.jsonl") in str(caught.value)
    assert [line["step"] for line in lines_of(tmp_path / "metrics.jsonl")] == [1]


def test_a_full_disk_while_closing(tmp_path):
    with pytest.raises(InputError, match="the disk is full"):
        with MetricWriter(tmp_path, 10, 0) as writer:
            writer._files.callback(full)
    with pytest.raises(KeyError):
        with MetricWriter(tmp_path, 10, 0) as writer:
            writer._files.callback(full)
            raise KeyError("what stopped the run")


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    write_run(tmp_path, [1])
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_clock_counts_images_and_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(
        "metricjax.training.metric_writer.time.perf_counter", lambda: now[0]
    )
    clock = Clock()
    clock.waited(0.5, 64)
    clock.waited(0.5, 64)
    now[0] += 4.0
    assert clock.read() == {"images_per_second": 32.0, "data_wait": 0.25}
    clock.waited(0.0, 10)
    now[0] += 1.0
    assert clock.read() == {"images_per_second": 10.0, "data_wait": 0.0}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"),
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (190, "3m10s"),
        (3600, "1h00m"),
        (18120, "5h02m"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
