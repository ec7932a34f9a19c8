"""Train one arm of `arms.toml` with one seed, and write its scores, time and memory as JSON.

    python docs/study/backbones/run.py ARM SEED FOLD FOLDER

FOLD is the drive that is left out, and FOLDER gets the runs and their JSON files.
Times are CPU seconds of the process (user and system), so other work on the machine changes them
little. The weights and PINMEM_HOME are those of the environment.
"""

import json
import resource
import sys
import time
from pathlib import Path

from pinmem_core.documents import read_toml
from pinmem_core.events import Event, Progress
from pinmem_core.models import load_checkpoint
from pinmem_core.overrides import nested, validate
from pinmem_core.recipe import load_recipe
from pinmem_core.training import train

PHASES = {"caching features": "caching", "initialising the memory": "memory"}


def main(arm: str, seed: str, fold: str, folder: str) -> None:
    """Run one arm."""
    study = read_toml(Path(__file__).with_name("arms.toml"))
    settings = {**study["settings"], **study["folds"][fold], "seed": int(seed)}
    for name in study["arms"][arm]["groups"]:
        settings |= study["groups"][name]
    settings |= study["arms"][arm]["settings"]
    iterations = settings["iterations"]
    config = validate(nested(load_recipe(study["recipe"]), settings))
    marks: dict[str, list[float]] = {}

    def listen(event: Event) -> None:
        if isinstance(event, Progress):
            task = "scoring" if event.task.startswith("scoring") else event.task
            marks.setdefault(task, []).append(time.process_time())

    began = time.monotonic()
    run = Path(folder) / fold / f"{arm}-{seed}"
    started = time.process_time()
    result = train(config, run, on_event=listen)
    first, last = marks["training"][0], marks["training"][-1]
    each = (last - first) / max(1, iterations - 1)
    begin = {PHASES[task]: of[-1] - started for task, of in marks.items() if task in PHASES}
    segmenter, _ = load_checkpoint(result.checkpoint)
    frozen = config.tune == "frozen"
    whole = sum(p.numel() for p in segmenter.parameters())
    fixed = sum(p.numel() for p in segmenter.backbone.pretrained().parameters()) if frozen else 0
    trained = sum(p.numel() for p in segmenter.parameters() if p.requires_grad) - fixed
    record = {
        "arm": arm,
        "seed": int(seed),
        "fold": fold,
        "iterations": iterations,
        "trained_parameters": trained,
        "parameters": whole,
        "cpu_seconds": {
            "per_iteration": round(each, 4),
            "start_to_last_iteration": round(last - started, 1),
            **{name: round(seconds, 1) for name, seconds in begin.items()},
            "scoring": round(marks["scoring"][-1] - last, 1),
        },
        "wall_seconds": round(time.monotonic() - began, 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "miou": {
            name: round(100 * scores.miou, 2)
            for phase in result.scores.values()
            for name, scores in phase.items()
        },
    }
    run.with_name(f"{run.name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
