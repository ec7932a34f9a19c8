"""The demo: train a baseline and pinmem on synthetic scenes, and compare them on unseen ones.

Run it as `python -m pinmem_cli.demo`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import Any

from pinmem_cli.output import Output, exit_code, show_error, table
from pinmem_cli.signals import deferred
from pinmem_cli.streams import repair_streams
from pinmem_core.errors import PinMemError

METHODS = ("aggregate", "pinmem")
IMAGES_PER_TARGET = 2


def run_demo(output: Output) -> None:
    """Train both methods, print their scores, and draw their predictions."""
    from pinmem_core.data.prepare import prepare_synthetic
    from pinmem_core.overrides import validate
    from pinmem_core.paths import register_run, runs_root
    from pinmem_core.recipe import load_recipe

    targets = validate(load_recipe("demo")).targets
    output.note("Drawing synthetic scenes ...")
    with output.listening() as listener:
        prepare_synthetic(targets, listener)
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-demo"
    runs = {method: runs_root() / f"{stamp}-{method}" for method in METHODS}
    for run in runs.values():
        register_run(run, part_of="demo")
    results = _train(runs, output)
    picture = runs_root() / f"{stamp}.png"
    _draw({method: result["run"] for method, result in results.items()}, targets, picture)
    rows = table("mIoU %", *METHODS)
    for phase, scores in results[METHODS[0]]["scores"].items():
        for name, score in scores.items():
            kind = "unseen" if score["seen"] is False else "seen"
            mious = [results[method]["scores"][phase][name]["miou"] for method in METHODS]
            rows.add_row(f"{name}  ({phase}, {kind})", *(f"{100 * of:.1f}" for of in mious))
    output.result({}, rows, "", f"picture: {picture}")
    output.next_step("pinmem train --help")


def _train(runs: Mapping[str, Path], output: Output) -> dict[str, dict[str, Any]]:
    """Train all methods in parallel, one process each: small networks gain little from threads."""
    threads = max(1, (os.cpu_count() or 1) // len(runs))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "pinmem_cli", "train", "--recipe", "demo", "--json"]
    trainings: dict[str, subprocess.Popen[str]] = {}
    results = {}
    try:
        with deferred():  # until all processes are known
            for method, run in runs.items():
                trainings[method] = subprocess.Popen(
                    [*command, "--method", method, "--output", str(run)],
                    env=environment,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
        for method, training in trainings.items():
            Thread(target=_relay, args=(method, training, output), daemon=True).start()
        for method, training in trainings.items():
            answer = training.stdout.read() if training.stdout else ""
            if training.wait() != 0:
                raise PinMemError(f"training {method} failed; its messages are above.")
            results[method] = json.loads(answer)
    finally:
        for training in trainings.values():
            training.terminate()
    return results


def _relay(method: str, training: "subprocess.Popen[str]", output: Output) -> None:
    """Print the messages of a training with its method's name."""
    for line in training.stderr or ():
        output.note(f"{method}: {line.rstrip()}")


def _draw(runs: Mapping[str, str], targets: tuple[str, ...], path: Path) -> None:
    from pinmem_core.evaluation import load_target
    from pinmem_core.evaluation.evaluate import comparison_sheet
    from pinmem_core.images import write_png
    from pinmem_core.inference import load

    predictors = {method: load(run) for method, run in runs.items()}
    samples = [
        sample
        for target in targets
        for sample in load_target(target, max_images=IMAGES_PER_TARGET).samples
    ]
    write_png(path, comparison_sheet(predictors, samples))


def main() -> None:
    """Run the demo; a signal ends the trainings, too."""
    repair_streams()
    about = "Train a baseline and pinmem on synthetic scenes, and compare them on unseen ones."
    argparse.ArgumentParser(prog="python -m pinmem_cli.demo", description=about).parse_args()
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        run_demo(Output())
    except PinMemError as error:
        show_error(error)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        show_error(PinMemError("interrupted."))
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
