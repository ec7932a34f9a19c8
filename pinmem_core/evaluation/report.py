"""Scoring a checkpoint on targets, with all that a reader must know beside the figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pinmem_core.errors import ConfigError, unknown_name
from pinmem_core.evaluation.evaluate import evaluate, load_target
from pinmem_core.evaluation.scores import Scores
from pinmem_core.events import Listener, ignore
from pinmem_core.inference import PROTOCOLS, Predictor
from pinmem_core.inference.predictor import checkpoint_of
from pinmem_core.model import load_checkpoint
from pinmem_core.preparation import draw_missing


@dataclass(frozen=True)
class Report:
    """The scores of one checkpoint.

    Attributes:
        scores: By target.
        splits: Which split of each target was scored.
        protocol: Name and description of how images were predicted.
        checkpoint: The folder.
    """

    scores: dict[str, Scores]
    splits: dict[str, str]
    protocol: str
    checkpoint: Path


def evaluate_run(
    run: str,
    targets: Sequence[str] = (),
    *,
    protocol: str = "paper-train",
    device: str = "auto",
    on_event: Listener = ignore,
) -> Report:
    """Score a run's last checkpoint.

    Args:
        run: A run's folder or name, or a checkpoint folder.
        targets: `dataset[:domain][@split]`; none for the targets that the run was given.
        protocol: Name of a protocol.
        device: Where to compute.
        on_event: Hears of the progress.

    Raises:
        ConfigError: A target or the protocol does not exist, or there are no targets.
        DataError: The run, or a target's data, is missing or damaged.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("protocol", protocol, PROTOCOLS)
    checkpoint = checkpoint_of(run)
    segmenter, config = load_checkpoint(checkpoint)
    training = config.get("training", {})
    wanted = targets or training.get("targets", ())
    if not wanted:
        raise ConfigError("no target is named, and the run has none.", "Name some with --targets.")
    draw_missing(wanted, on_event)
    chosen = [load_target(text, trained_on=training.get("sources", ())) for text in wanted]
    predictor = Predictor(segmenter, device=device, protocol=PROTOCOLS[protocol])
    scores = {
        target.name: evaluate(
            predictor, target.samples, on_event=on_event, task=f"scoring {target.name}"
        )
        for target in chosen
    }
    described = f"{protocol}: {PROTOCOLS[protocol].describe()}"
    return Report(scores, {t.name: t.split for t in chosen}, described, checkpoint)
