"""All formats."""

from fuzz import (
    targets_annotations,
    targets_archives,
    targets_data,
    targets_images,
    targets_labels,
    targets_network,
    targets_text,
    targets_weights,
)
from fuzz.cases import Target

TARGETS: tuple[Target, ...] = (
    *targets_labels.TARGETS,
    *targets_images.TARGETS,
    *targets_data.TARGETS,
    *targets_text.TARGETS,
    *targets_weights.TARGETS,
    *targets_annotations.TARGETS,
    *targets_archives.TARGETS,
    *targets_network.TARGETS,
)
