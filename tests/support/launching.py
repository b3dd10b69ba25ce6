"""What the tests of launch/ share: commands made of scripts, and a run to start."""

import os
import subprocess
import sys
import time

import paths

LAUNCH = paths.LAUNCH

# A run: says what it was given, then works until it is told to stop.
RUN = """\
import json, os, signal, sys, time
names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
names += ("JAX_LOCAL_DEVICE_IDS",)
given = {name: os.environ.get(name) for name in names}
def say(text):
    os.write(1, (text + "\\n").encode())  # Whole, though another host speaks as well.
def stop(*_):
    say("saved")
    sys.exit(int(os.environ.get("FAKE_CODE", "0")))
signal.signal(signal.SIGTERM, stop)
say(json.dumps([os.getcwd(), given, sys.argv[1:]]))
time.sleep(float(os.environ.get("FAKE_SECONDS", "60")))
"""
WORDS = ["--workdir", "gs://bucket/a b", "$HOME 'x' \"y\"", "*"]


def install(directory, **programs):
    """Python programs as commands of a directory."""
    directory.mkdir(exist_ok=True)
    for name, text in programs.items():
        path = directory / name
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(0o755)
    return directory


def call(script, *arguments, env=None, **options):
    """A script of launch/, waited for."""
    return subprocess.run(
        [LAUNCH / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | (env or {}),
        **options,
    )


def until(condition, seconds=60):
    """Waits until something is so; returns it."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "that did not come about in time"
        time.sleep(0.05)
    return value


def words_of(line):
    """The words of a line as bash reads it, which knows $'...' too."""
    script = f'for word in {line}; do printf "%s\\0" "$word"; done'
    out = subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout
    return out.split("\0")[:-1]
