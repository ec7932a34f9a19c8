"""The demo: train a baseline and pinmem alike on drawn streets, and compare them where unseen.

Run it as `python -m pinmem_cli.demo`.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pinmem_cli.output import Output, exit_code, show_error, table
from pinmem_core.errors import PinMemError

if TYPE_CHECKING:
    from pinmem_core.learning import RunResult

METHODS = ("aggregate", "pinmem")
IMAGES_PER_TARGET = 2


def run_demo(output: Output) -> None:
    """Train both methods, then print their scores and draw their predictions."""
    from pinmem_core.config import load_recipe, validate
    from pinmem_core.home import runs_root
    from pinmem_core.learning import train

    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-demo"
    results = {}
    for method in METHODS:
        output.note(f"training {method} ...")
        config = validate({**load_recipe("demo"), "method": method})
        with output.listening() as listener:
            results[method] = train(config, runs_root() / f"{stamp}-{method}", on_event=listener)

    picture = runs_root() / f"{stamp}.png"
    _draw(results, config.targets, picture)
    rows = table("mIoU %", *METHODS)
    for phase in ("source", "target"):
        for name in results[METHODS[0]].scores[phase]:
            figures = [100 * results[method].scores[phase][name].miou for method in METHODS]
            kind = "source validation" if phase == "source" else "unseen target"
            rows.add_row(f"{name}  ({kind})", *(f"{figure:.1f}" for figure in figures))
    output.result({}, rows, "", f"picture: {picture}")
    output.next_step("pinmem train --help, or your own photo: pinmem predict PHOTO -o mask.png")


def _draw(results: "dict[str, RunResult]", targets: tuple[str, ...], path: Path) -> None:
    from pinmem_core.evaluation import load_target
    from pinmem_core.evaluation.pictures import comparison_sheet
    from pinmem_core.images import write_png
    from pinmem_core.inference import load

    predictors = {method: load(str(result.run)) for method, result in results.items()}
    samples = [
        sample
        for target in targets
        for sample in load_target(target, trained_on=(), max_images=IMAGES_PER_TARGET).samples
    ]
    write_png(path, comparison_sheet(predictors, samples))


def main() -> None:
    """Run the demo; failures are told as in every command."""
    try:
        run_demo(Output())
    except PinMemError as error:
        show_error(error)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
