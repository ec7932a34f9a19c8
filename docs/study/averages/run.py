"""Compare the last weights of runs of 1,500 iterations with the moving average of their weights.

    python docs/study/averages/run.py train FOLD SEED FOLDER
    python docs/study/averages/run.py score FOLDER

The first command trains a run in FOLDER; an average does not change the training, so the run has
both. The second command scores both of all runs on the same images, and writes `results.json`
to the folder of this script. As in `pinmem train`, the average gets batch-norm statistics of 50
batches, and the last weights keep those of the training. PINMEM_HOME holds copies of CamVid and
IDD-Lite at half size (`docs/study/half.py`).
"""

import json
import sys
import time
from datetime import UTC, datetime
from functools import reduce
from operator import add
from pathlib import Path
from statistics import fmean

import torch

from pinmem_core.documents import read_toml
from pinmem_core.evaluation.bootstrap import average_paired_interval, student_interval
from pinmem_core.evaluation.evaluate import evaluate_domain
from pinmem_core.evaluation.results import ImageResult
from pinmem_core.evaluation.targets import Target, load_target
from pinmem_core.events import ignore
from pinmem_core.inference import Predictor, get_protocol
from pinmem_core.models import Segmenter, load_checkpoint
from pinmem_core.overrides import nested, validate
from pinmem_core.recipe import load_recipe
from pinmem_core.training import train
from pinmem_core.training.snapshots import newest_snapshot

HERE = Path(__file__).parent
ITERATIONS, DECAY, IMAGES = 1500, 0.99, 40
NEVER_SEEN = "idd-lite@val"


def main(command: str, *arguments: str) -> None:
    """Run one command."""
    {"train": run, "score": score}[command](*arguments)


def run(fold: str, seed: str, folder: str) -> None:
    """Train `aggregate` as docs/study/memory/camvid.toml does, but for longer and with averages."""
    study = read_toml(HERE.parent / "memory" / "camvid.toml")
    settings = study["settings"] | {
        "method": "aggregate",
        **study["folds"][fold],
        "seed": int(seed),
        "iterations": ITERATIONS,
        "optim.ema": DECAY,
    }
    config = validate(nested(load_recipe(study["recipe"]), settings))
    began = time.process_time()
    train(config, Path(folder) / f"{fold}-{seed}")
    sys.stdout.write(f"{fold} {seed} {time.process_time() - began:.0f} CPU s\n")


def score(folder: str) -> None:
    """Score the last weights and the average of all runs."""
    folds = read_toml(HERE.parent / "memory" / "camvid.toml")["folds"]
    miou: dict[str, dict[str, dict[str, float]]] = {}
    differences: dict[str, dict] = {}
    for fold, of in folds.items():
        runs = sorted(Path(folder).glob(f"{fold}-*"))
        for name in (*of["targets"], NEVER_SEEN):
            target = load_target(name, max_images=IMAGES)
            pairs = [tuple(counts(network, target) for network in networks(run)) for run in runs]
            if not pairs:
                continue
            values = [tuple(percent(results) for results in pair) for pair in pairs]
            found = [average - last for last, average in values]
            miou[f"{fold}: {name}"] = {
                path.name: {"last": last, "average": average}
                for path, (last, average) in zip(runs, values, strict=True)
            }
            differences[f"{fold}: {name}"] = {
                "images": len(target.samples),
                "mean": fmean(found),
                "seeds": found,
                "bootstrap": [100 * end for end in average_paired_interval([pairs])],
                "student": student_interval(found),
            }
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "iterations": ITERATIONS,
        "decay": DECAY,
        "differences": differences,
        "miou": miou,
    }
    (HERE / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def networks(run: Path) -> tuple[Segmenter, Segmenter]:
    """Return the network with its last weights, and with their average."""
    average, _ = load_checkpoint(run / "checkpoint")
    last = Segmenter(average.config)
    last.load_state_dict(newest_snapshot(run, ignore).states()["model"])
    return last.eval(), average


def counts(network: Segmenter, target: Target) -> list[ImageResult]:
    """Return the confusion matrix of each image."""
    predictor = Predictor(network, device="cpu", protocol=get_protocol("paper-train"))
    return evaluate_domain(predictor, target, task="scoring").images


def percent(results: list[ImageResult]) -> float:
    """Return the mIoU in percent."""
    return 100 * reduce(add, [result.matrix for result in results]).miou()


if __name__ == "__main__":
    main(*sys.argv[1:])
