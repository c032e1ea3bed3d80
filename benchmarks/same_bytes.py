"""Does a change of code leave every number alone? Sets after 50 steps, as hashes, to compare between two commits.

    python benchmarks/same_bytes.py --out before.json                       # at the one commit
    python benchmarks/same_bytes.py --out after.json --against before.json  # at the other; exits 1 where bytes differ

Each method on gray 8x8 digits and on colour 16x16 patterns that it makes itself, eager in fp32 and compiled in bf16, on
one thread, through the public functions alone, so that the same script serves any commit. Hashes hold for one kind of
processor and one torch: make both files on the same machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from hashlib import blake2b
from pathlib import Path

import numpy as np

METHODS = ("dsdm", "dsdm_plus", "dm", "herding", "random_mix")
MODES = {
    "eager fp32": {"compile": False, "precision": "fp32"},
    "compiled bf16": {"compile": True, "precision": "bf16"},
}
STEPS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--modes", default=",".join(MODES), help="comma separated")
    parser.add_argument("--data", default="digits,patterns", help="comma separated")
    parser.add_argument("--cache", type=Path, help="folder of the pool; a temporary one where left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = hashes(Path(folder), options.data.split(","), options.modes.split(","), options.cache)
    record = {"schema_version": 1, "commit": commit(), "steps": STEPS, "sets": found}
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(compare(found, json.loads(options.against.read_text())["sets"]) if options.against else 0)


def hashes(folder: Path, data_sets: list[str], modes: list[str], cache: Path | None) -> dict[str, str]:
    import potstill

    found = {}
    for name in data_sets:
        data = potstill.load_dataset(name if name == "digits" else patterns(folder))
        for mode in modes:
            for method in METHODS:
                steps = {"steps": STEPS} if method in ("dsdm", "dsdm_plus", "dm") else {}
                real = {"real_batch": 32} if steps else {}
                run = potstill.distill(
                    data,
                    method=method,
                    ipc=2,
                    factor=(2, 2) if name == "patterns" else (1, 1),
                    cache=cache or folder,
                    recipe={
                        "pool.members": 2,
                        "pool.epochs": 1,
                        "runtime.device": "cpu",
                        "runtime.threads": 1,
                        **{f"runtime.{key}": value for key, value in MODES[mode].items()},
                    },
                    **steps,
                    **real,
                )
                images = run.synthetic.images.contiguous().numpy().tobytes()
                found[f"{name}, {mode}, {method}"] = blake2b(images, digest_size=12).hexdigest()
                print(found[f"{name}, {mode}, {method}"], f"{name}, {mode}, {method}", flush=True)
    return found


def patterns(folder: Path) -> Path:
    """Ten classes of colour gratings with noise, 16x16, as an .npz file: enough to learn, nothing to fetch."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:16, 0:16] / 16

    def images(labels: np.ndarray) -> np.ndarray:
        angle, phase = labels * np.pi / 10, rng.uniform(0, 6.28, len(labels))
        wave = np.sin(
            12 * (np.cos(angle)[:, None, None] * rows + np.sin(angle)[:, None, None] * columns) + phase[:, None, None]
        )
        colour = np.stack([wave, wave * np.cos(labels)[:, None, None], -wave], axis=-1)
        noisy = 128 + 70 * colour + rng.normal(0, 25, colour.shape)
        return noisy.clip(0, 255).astype(np.uint8)

    train, test = np.repeat(np.arange(10), 64), np.repeat(np.arange(10), 8)
    path = folder / "patterns.npz"
    np.savez(path, x_train=images(train), y_train=train, x_test=images(test), y_test=test)
    return path


def compare(found: dict[str, str], before: dict[str, str]) -> int:
    """1 where a set's bytes changed, each one named; else 0."""
    changed = [name for name in found if name in before and before[name] != found[name]]
    for name in changed:
        print(f"differs: {name}: {before[name]} -> {found[name]}")
    equal = sum(name in before for name in found) - len(changed)
    print(f"{equal} equal, {len(changed)} differ, {len(found) - equal - len(changed)} without a counterpart")
    return int(bool(changed))


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
