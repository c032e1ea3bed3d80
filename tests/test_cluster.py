"""Two Ray nodes in network namespaces, each with a network and files of its own; one is lost in mid-study."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

import potstill

NAMES, ADDRESSES, PORT = ("potstill-a", "potstill-b"), ("10.213.77.1", "10.213.77.2"), 6399
STUDY = [
    sys.executable, "-m", "potstill", "compare", "--dataset", "digits", "--methods", "random,dm,dsdm", "--ipc", "2",
    "--methods.dm.steps", "60", "--methods.dm.real_batch", "16", "--methods.dsdm.steps", "60",
    "--methods.dsdm.real_batch", "16", "--saving.every", "2", "--pool.members", "2", "--pool.epochs", "1",
    "--nets", "2", "--epochs", "5", "--threads", "1", "--compile", "false", "--precision", "fp32", "--device", "cpu",
    "-q",
]  # fmt: skip


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def spaces() -> Iterator[None]:
    """Two namespaces that reach each other; whatever runs in them ends with the test."""
    if not shutil.which("ip") or not find_spec("ray"):
        pytest.skip("needs the command ip and the extra ray")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "psa", "netns", NAMES[0], "type", "veth", "peer", "name", "psb", "netns", NAMES[1])
        for name, link, address in zip(NAMES, ("psa", "psb"), ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            for one in ("lo", link):
                ip("-n", name, "link", "set", one, "up")
    except subprocess.CalledProcessError as error:
        remove()
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    yield
    remove()


def remove() -> None:
    for name in NAMES:
        kill(name)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def kill(name: str) -> None:
    """Everything that runs in a namespace, without a word."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
    for pid in map(int, found):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def environment(cache: Path, **more: str) -> dict[str, str]:
    own = {
        "PYTHONPATH": str(Path(potstill.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "POTSTILL_CACHE_DIR": str(cache),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    return {**{k: v for k, v in os.environ.items() if not k.startswith("RAY_")}, **own, **more}


def start_node(node: int, cache: Path, *words: str) -> None:
    """A Ray node with one core in a namespace of its own."""
    command = ["ip", "netns", "exec", NAMES[node], sys.executable, "-m", "ray.scripts.scripts", "start", *words]
    command += ["--node-ip-address", ADDRESSES[node], "--num-cpus", "1", "--object-store-memory", "100000000"]
    done = subprocess.run(command, env=environment(cache), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def results(out: Path) -> dict[str, object]:
    """Sets by their bytes, networks by their accuracies."""
    sets = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.glob("*/synthetic/*.safetensors")}
    scores = {p.relative_to(out).as_posix(): json.loads(p.read_text())["accuracy"] for p in out.glob("*/scores/*.json")}
    return {**sets, **scores}


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.usefixtures("spaces")
def test_a_node_lost_in_the_middle_changes_nothing_but_the_time(tmp_path: Path) -> None:
    plain = [*STUDY, "--out", str(tmp_path / "plain"), "--cache-dir", str(tmp_path / "cache")]
    subprocess.run(plain, env=environment(tmp_path / "none"), check=True, capture_output=True, timeout=600)
    caches, head = [tmp_path / name for name in NAMES], f"{ADDRESSES[0]}:{PORT}"
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:  # a socket's path has 107 characters at most
        own = ["--port", str(PORT), "--temp-dir", short, "--include-dashboard=false"]
        start_node(0, caches[0], "--head", *own)
        start_node(1, caches[1], "--address", head)
        spread = ["ip", "netns", "exec", NAMES[0], *STUDY, "--out", str(tmp_path / "spread"), "--engine", "ray"]
        driver = subprocess.Popen(
            [*spread, "--cache-dir", str(tmp_path / "fresh")],
            env=environment(tmp_path / "driver", RAY_ADDRESS=head),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            until = time.monotonic() + 400
            while not list((caches[1] / "tasks").glob("*/run/state/snapshot.safetensors")):
                assert driver.poll() is None and time.monotonic() < until, "the second node was given no set to make"
                time.sleep(0.02)
            kill(NAMES[1])
            _, said = driver.communicate(timeout=500)
        finally:
            driver.kill()
            driver.wait()
            for name in NAMES:
                kill(name)
    assert driver.returncode == 0, said
    assert results(tmp_path / "spread") == results(tmp_path / "plain") and len(results(tmp_path / "plain")) == 3 * 4
