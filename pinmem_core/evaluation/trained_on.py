"""The images that a network was trained on, which say whether a target is unseen."""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from unicodedata import normalize

from pinmem_core.checkpoints.hub import run_folder
from pinmem_core.checkpoints.model_card import INIT_FROM
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.data.samples import Samples
from pinmem_core.documents import MAX_BYTES, read_json_object
from pinmem_core.errors import DataError

RECORD = "trained_on"
"""Key of the training images in a checkpoint's `config.json`."""
_BYTES = 6
"""Length of a digest in bytes. The probability that any of a thousand ids collides with one of a
million others is 4e-6."""


@dataclass(frozen=True)
class TrainedOn:
    """The images that a network was trained on.

    Attributes:
        sources: Sources as `dataset[:domain][@split]`; empty if unknown.
        digests: Digests of the ids of all images, by dataset; None if unknown.
    """

    sources: tuple[str, ...] = ()
    digests: Mapping[str, frozenset[bytes]] | None = None

    @classmethod
    def of_samples(cls, sources: Sequence[str], ids: Iterable[Iterable[str]]) -> "TrainedOn":
        """Return the record of a training run.

        Args:
            sources: Sources as `dataset[:domain][@split]`.
            ids: Sample ids of each source, or of each part of a single source.
        """
        parts = [list(part) for part in ids]
        names = [*sources] * (len(parts) if len(sources) == 1 else 1)
        digests: dict[str, frozenset[bytes]] = {}
        for source, part in zip(names, parts, strict=True):
            dataset = _dataset_and_domain(source)[0]
            digests[dataset] = digests.get(dataset, frozenset()) | {
                _digest(dataset, sample_id) for sample_id in part
            }
        return cls(tuple(sources), digests)

    @classmethod
    def of_checkpoint(
        cls, config: Mapping[str, Any], samples: Mapping[str, Any] | None = None
    ) -> "TrainedOn":
        """Return the record of a checkpoint.

        Args:
            config: Content of the checkpoint's `config.json`.
            samples: Content of the run's `samples.json`, for old checkpoints without the record.
        """
        start = config.get(INIT_FROM, {})
        named = (*config.get("training", {}).get("sources", ()), *start.get("sources", ()))
        sources = tuple(map(str, named))
        digests = _parsed(config.get(RECORD))
        if digests is not None or start:  # `samples` lack the images of the initial model
            return cls(sources, digests)
        try:
            record = cls.of_samples(sources, (samples or {})["train"].values())
        except (KeyError, AttributeError, TypeError, ValueError):  # missing or damaged
            return cls(sources)
        return record if record.digests else cls(sources)

    @classmethod
    def of_folder(cls, checkpoint: Path, config: Mapping[str, Any]) -> "TrainedOn":
        """Return the record of the checkpoint in a folder, whose `config.json` is `config`."""
        try:
            samples = read_json_object(run_folder(checkpoint) / "samples.json", 16 * MAX_BYTES)
        except DataError:
            samples = None  # missing or damaged
        return cls.of_checkpoint(config, samples)

    def __or__(self, other: "TrainedOn") -> "TrainedOn":
        """Return the record of a network that was trained on the images of both records."""
        sources = tuple(dict.fromkeys((*self.sources, *other.sources)))
        if self.digests is None or other.digests is None:
            return TrainedOn(sources)
        datasets = self.digests.keys() | other.digests.keys()
        return TrainedOn(sources, {name: self._of(name) | other._of(name) for name in datasets})

    def as_json(self) -> dict[str, Any]:
        """Return the record as stored in a checkpoint."""
        return {
            dataset: {"images": len(digests), "ids": b64encode(b"".join(sorted(digests))).decode()}
            for dataset, digests in (self.digests or {}).items()
        }

    def has_seen(self, dataset: str, samples: Samples) -> bool | None:
        """Return whether any of the samples belongs to a seen domain.

        A domain is seen if a source names it, or if the network was trained on any of its images.

        Args:
            dataset: Name of the prepared dataset.
            samples: Samples of that dataset.

        Returns:
            Whether a domain is seen; None if the training images are unknown and no source names
            the domain.
        """
        named = {
            domain for name, domain in map(_dataset_and_domain, self.sources) if name == dataset
        }
        domains = samples.domains.keys()
        if (None in named and domains) or domains & named:
            return True
        if self.digests is None:
            return None
        trained = self._of(dataset)
        if not trained:
            return False
        everything = PreparedDataset.open(dataset).samples
        candidates = (i for domain in domains for i in everything.of(domain=domain).ids)
        return any(_digest(dataset, sample_id) in trained for sample_id in candidates)

    def count(self, dataset: str, samples: Samples) -> int | None:
        """Return how many of the samples the network was trained on; None if unknown."""
        if self.digests is None:
            return None
        trained = self._of(dataset)
        return sum(_digest(dataset, sample_id) in trained for sample_id in samples.ids)

    def _of(self, dataset: str) -> frozenset[bytes]:
        return (self.digests or {}).get(dataset, frozenset())


def _dataset_and_domain(source: str) -> tuple[str, str | None]:
    """Split a source without its dataset card, which may be missing on this machine."""
    dataset, _, domain = source.strip().partition("@")[0].partition(":")
    return dataset, domain or None


def _digest(dataset: str, sample_id: str) -> bytes:
    text = normalize("NFC", f"{dataset}/{sample_id}")
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_BYTES).digest()


def _parsed(record: Any) -> dict[str, frozenset[bytes]] | None:
    """Return the digests of a record; None if the record is missing or damaged."""
    digests = {}
    try:
        for dataset, entry in record.items():
            digits = b64decode(entry["ids"], validate=True)
            if len(digits) != _BYTES * entry["images"]:
                return None
            starts = range(0, len(digits), _BYTES)
            digests[dataset] = frozenset(digits[start : start + _BYTES] for start in starts)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return digests or None
