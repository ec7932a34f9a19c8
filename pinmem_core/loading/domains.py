"""Source domains of a run, and random sampling from them.

All randomness is a pure function of (seed, iteration), so a run that resumes at iteration 1000
replays nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pinmem_core.errors import DataError
from pinmem_core.preparation import Sample, Selection, select

# Independent random streams of one seed.
_SAMPLING, _META_SPLIT, _PSEUDO_DOMAINS, _GEOMETRY, _STEPS, _APPEARANCE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Domain:
    """A named set of samples that the meta step treats as one domain."""

    name: str
    samples: Sequence[Sample]


def load_domains(sources: Sequence[str], *, pseudo_domains: int, seed: int) -> list[Domain]:
    """Return the training samples of each source as a domain.

    A single source is split at random into pseudo-domains of equal size, as the paper does for
    meta-learning from GTAV alone. All methods get the same pseudo-domains, so that comparisons are
    fair.

    Args:
        sources: Sources as `dataset[:domain][@split]`.
        pseudo_domains: Number of pseudo-domains of a single source.
        seed: Random seed of the split.

    Raises:
        ConfigError: A source does not exist.
        DataError: A source is not prepared or holds too few training samples.
    """
    selections = [Selection.parse(source) for source in sources]
    pools = [select(selection, default_split="train") for selection in selections]
    if len(pools) > 1:
        return [Domain(str(s), pool) for s, pool in zip(selections, pools, strict=True)]
    (name,), (whole,) = map(str, selections), pools
    if len(whole) < pseudo_domains:
        raise DataError(
            f"{name} holds {len(whole)} training samples, too few to be split into "
            f"{pseudo_domains} pseudo-domains.",
            "Name a second source, or a larger one.",
        )
    order = np.random.default_rng([seed, _PSEUDO_DOMAINS]).permutation(len(whole))
    parts = np.array_split(order, pseudo_domains)
    return [
        Domain(f"{name}#{number}", whole.take(part)) for number, part in enumerate(parts, start=1)
    ]


def draw_indices(seed: int, iteration: int, domain: int, population: int, count: int) -> list[int]:
    """Draw `count` sample indices of a domain uniformly with replacement."""
    rng = np.random.default_rng([seed, _SAMPLING, iteration, domain])
    return [int(index) for index in rng.integers(population, size=count)]


def draw_meta_split(seed: int, iteration: int, domains: int) -> tuple[list[int], list[int]]:
    """Draw the meta-train and meta-test domains of an iteration.

    The domains are permuted, and i is uniform in {1..domains-1}: the first i domains are
    meta-train, the others meta-test (docs/method.md, section 4).
    """
    rng = np.random.default_rng([seed, _META_SPLIT, iteration])
    order = [int(domain) for domain in rng.permutation(domains)]
    first = int(rng.integers(1, domains)) if domains > 1 else domains
    return order[:first], order[first:]


def geometry_rng(
    seed: int, iteration: int, domain: int, slot: int, attempt: int
) -> np.random.Generator:
    """Return the random generator for scale, position and flip of one crop."""
    return np.random.default_rng([seed, _GEOMETRY, iteration, domain, slot, attempt])


def appearance_seed(seed: int, iteration: int, domain: int, slot: int, attempt: int) -> int:
    """Return the seed for colour jitter and blur of one crop."""
    return _derive(seed, _APPEARANCE, iteration, domain, slot, attempt)


def step_seed(seed: int, iteration: int, rank: int = 0) -> int:
    """Return the seed of a rank in an iteration, for dropout and the Gumbel read."""
    return _derive(seed, _STEPS, iteration, rank)


def _derive(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
