"""The source domains of a run, and how each iteration draws from them.

All randomness is a pure function of (seed, iteration): a run that continues at iteration 1000
needs no replay of the first thousand.
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
    """A named pool of samples that the meta step treats as one domain."""

    name: str
    samples: Sequence[Sample]


def load_domains(sources: Sequence[str], *, pseudo_domains: int, seed: int) -> list[Domain]:
    """Return the training samples of each source as a domain.

    A single source is split at random into `pseudo_domains` of equal size, as the paper does to
    meta-learn from GTAV alone; every method gets them, so that comparisons stay fair.

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
    """Return `count` sample indices of a domain, uniformly at random with replacement."""
    rng = np.random.default_rng([seed, _SAMPLING, iteration, domain])
    return [int(index) for index in rng.integers(population, size=count)]


def draw_meta_split(seed: int, iteration: int, domains: int) -> tuple[list[int], list[int]]:
    """Return the meta-train and meta-test domains of an iteration.

    A permutation of the domains, and i uniformly from {1..domains-1}: the first i are meta-train,
    the rest meta-test (docs/method.md, section 4).
    """
    rng = np.random.default_rng([seed, _META_SPLIT, iteration])
    order = [int(domain) for domain in rng.permutation(domains)]
    first = int(rng.integers(1, domains)) if domains > 1 else domains
    return order[:first], order[first:]


def geometry_rng(
    seed: int, iteration: int, domain: int, slot: int, attempt: int
) -> np.random.Generator:
    """Return the source of one crop's scale, place and flip."""
    return np.random.default_rng([seed, _GEOMETRY, iteration, domain, slot, attempt])


def appearance_seed(seed: int, iteration: int, domain: int, slot: int, attempt: int) -> int:
    """Return the seed of one crop's colours and blur."""
    return _derive(seed, _APPEARANCE, iteration, domain, slot, attempt)


def step_seed(seed: int, iteration: int, rank: int = 0) -> int:
    """Return the seed of a rank's own randomness in an iteration: dropout, the Gumbel reading."""
    return _derive(seed, _STEPS, iteration, rank)


def _derive(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
