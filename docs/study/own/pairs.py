"""Train on one folder of own images and score the other, for ten pairs of drives of IDD-Lite.

    python docs/study/own/pairs.py IDD_LITE FOLDER MOBILENET_WEIGHTS [SEED...]

`mycity.py` makes each pair. Every arm and seed is trained by `pinmem train`, unless its run exists
already. The arm `starter` is the arm `mean` without the initial weights: both have the same
training. The scores on the folder that no run has seen go to `results.json`, next to this script,
those of the later pairs to `later/results.json`, and those of the longer training of the first pair
to `longer/results.json`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from mycity import make
from safetensors.torch import load_file

from pinmem_core.evaluation import evaluate_run
from pinmem_core.models import load_checkpoint, save_checkpoint

HERE = Path(__file__).parent
PAIRS = {
    "p": ("63 237", "252 80", "85 548", "460 77", "470 96", "377 6"),
    "later": ("377 77", "96 252", "460 252", "6 96"),
    "longer": ("63 237",),
}
"""Drives of `north` and `south`, drawn at random from the 13 drives with at least 15 images."""
ITERATIONS = {"p": 180, "later": 180, "longer": 933}
"""The last is what `--time 10m` chose on two cores (docs/start.md)."""
TRAIN = "train --sources mycity:north --targets mycity:south --iterations"
PREPARE = ("new-card mycity", "prepare mycity --card mycity.yaml --from mycity")


def pinmem(folder: Path, *words: str) -> None:
    """Run pinmem in a folder that has its own datasets."""
    environment = os.environ | {"PINMEM_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "pinmem_cli", *words], cwd=folder, env=environment, check=True
    )


def trained(folder: Path, run: str, iterations: int, *options: str) -> float:
    """Return the mIoU of a run on `south`, in %, after training it if that is not done."""
    scores = folder / run / "scores.json"
    if not scores.exists():
        pinmem(folder, *TRAIN.split(), str(iterations), *options, "-o", run)
    of = json.loads(scores.read_text(encoding="utf-8"))
    return round(100 * of["target"]["mycity:south"]["miou"], 2)


def without_initial_weights(folder: Path, run: str) -> float:
    """Return the mIoU on `south`, in %, of the trained weights alone."""
    network, about = load_checkpoint(folder / run / "checkpoint")
    newest = max((folder / run / "snapshots").glob("*/model.safetensors"))
    network.load_state_dict(load_file(newest))
    save_checkpoint(network, folder / f"{run}-trained", about)
    os.environ["PINMEM_HOME"] = str(folder / "home")
    report = evaluate_run(str(folder / f"{run}-trained"), ["mycity:south"], device="cpu")
    return round(100 * report.domains["mycity:south"].scores.miou, 2)


def main(idd: Path, folder: Path, weights: Path, seeds: list[str]) -> None:
    """Make the data, train, and write the results."""
    mean = ("--from", "starter", "--set", "optim.initial_share=0.5")
    arms = {"mean": mean, "imagenet": ("--init-weights", str(weights))}
    for part, pairs in PAIRS.items():
        records = []
        for number, (north, south) in enumerate(map(str.split, pairs)):
            place = folder / f"{part}{number}"
            if not place.exists():
                make(idd, place / "mycity", {"north": north, "south": south})
                for command in PREPARE:
                    pinmem(place, "data", *command.split())
            for seed in seeds:
                miou = {
                    arm: trained(place, f"{arm}-{seed}", ITERATIONS[part], *options, "--seed", seed)
                    for arm, options in arms.items()
                }
                miou["starter"] = without_initial_weights(place, f"mean-{seed}")
                records.append({"north": north, "south": south, "seed": int(seed), **miou})
        results = HERE / ("" if part == "p" else part) / "results.json"
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    idd, folder, weights, *seeds = sys.argv[1:]
    main(Path(idd), Path(folder).absolute(), Path(weights).absolute(), seeds or ["0", "1", "2"])
