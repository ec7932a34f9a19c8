"""Measure what opening a prepared dataset of up to a million samples costs.

    python tests/benchmarks/million.py --samples 10000 100000 1000000

It writes the manifest, summary and records of a synthetic dataset, and with --labels an empty
label file for each sample, into a temporary folder. Each measurement runs in a fresh process:

- start: what a training process does before it builds its network. It opens one source of that
  size, its validation images and an unseen target, and notes the samples that it trains on.
- list, info: `pinmem data list` and `pinmem data info`.

The table shows seconds, those of them that the process had a CPU (which other work on the machine
does not stretch), and the peak resident memory beyond that of a process that has only imported the
package and read the cards.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("gtav", "synthia")
TARGET_SAMPLES = 1000


def write_dataset(home: Path, name: str, samples: int, *, labels: bool) -> None:
    """Write a prepared dataset whose pictures are never opened."""
    from pinmem_core.data import prepared

    root = home / "datasets" / name
    (root / "labels").mkdir(parents=True)
    counts = {"train": samples - samples // 10, "val": samples // 10}
    with (root / "manifest.jsonl").open("w") as manifest:
        for number in range(samples):
            line = {
                "id": f"{name}_{number:07}",
                "image": f"../../raw/{name}/images/part_{number // 10000:03}/{number:07}.png",
                "label": f"labels/{number % 256:02x}/{name}_{number:07}.png",
                "split": "train" if number < counts["train"] else "val",
                "domain": name,
                "width": 1914,
                "height": 1052,
            }
            manifest.write(json.dumps(line) + "\n")
            if labels:
                path = root / line["label"]
                path.parent.mkdir(exist_ok=True)
                path.touch()
    summary = {
        "schema_version": prepared.SCHEMA_VERSION,
        "dataset": name,
        "counts": counts,
        "digest": "0" * 64,
        "bytes": 4096,
        "excluded": [],
        "sources": [],
    }
    (root / "dataset.json").write_text(json.dumps(summary))


def start() -> None:
    """Do what a training process does before it builds its network."""
    from pinmem_core.data.batches import load_domains
    from pinmem_core.evaluation import TrainedOn, load_target, load_validation
    from pinmem_core.events import ignore

    try:
        from pinmem_core.data.samples import ids_of
    except ImportError:  # a version from before it, measured for comparison

        def ids_of(samples):
            return [sample.id for sample in samples]

    before = _begin()
    source, target = NAMES
    domains = load_domains([source], pseudo_domains=2, seed=1)
    validation = load_validation([source], 500, ignore)
    trained_on = TrainedOn.of_samples([source], (ids_of(domain.samples) for domain in domains))
    record = trained_on.as_json()
    targets = [load_target(target, trained_on, 500)]
    samples = {
        "train": {domain.name: ids_of(domain.samples) for domain in domains},
        "scored": {t.name: ids_of(t.samples) for t in (*validation, *targets)},
    }
    text = json.dumps(samples, indent=2) + json.dumps(record)
    _end(before)
    assert text


def command(*arguments: str) -> None:
    """Run a command of pinmem in this process, its output discarded."""
    import pinmem_core.data.prepared  # noqa: F401
    from pinmem_cli.app import app

    before = _begin()
    with Path(os.devnull).open("w") as nothing:
        shown, sys.stdout = sys.stdout, nothing
        try:
            app([*arguments], standalone_mode=False)
        finally:
            sys.stdout = shown
    _end(before)


def _begin() -> list[float]:
    from pinmem_core.data.catalog import cards

    cards()  # parsed once a process
    return _spent()


def _end(before: list[float]) -> None:
    print(json.dumps([now - then for now, then in zip(_spent(), before, strict=True)]))


def _spent() -> list[float]:
    """Return seconds, CPU seconds and the largest resident size in MiB of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [time.perf_counter(), time.process_time(), peak]


TASKS = {
    "start": start,
    "list": lambda: command("data", "list", "--json"),
    "info": lambda: command("data", "info", NAMES[0], "--json"),
}


def main() -> None:
    """Print a table row for each number of samples and task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--labels", action="store_true", help="Write empty label files, too.")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        TASKS[arguments.task]()
        return
    print("| samples | task | seconds | CPU seconds | MiB |\n|---|---|---|---|---|", flush=True)
    for samples in arguments.samples:
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(Path(folder), NAMES[0], samples, labels=arguments.labels)
            write_dataset(Path(folder), NAMES[1], TARGET_SAMPLES, labels=arguments.labels)
            for task in TASKS:
                result = subprocess.run(
                    [sys.executable, __file__, "--task", task],
                    env={**os.environ, "PINMEM_HOME": folder},
                    check=True,
                    capture_output=True,
                    text=True,
                )
                seconds, cpu, mib = json.loads(result.stdout.splitlines()[-1])
                print(
                    f"| {samples:,} | {task} | {seconds:.2f} | {cpu:.2f} | {mib:.0f} |", flush=True
                )


if __name__ == "__main__":
    main()
