"""Record of the training images, which separates seen from unseen domains.

A checkpoint stores the record in its `config.json`: for each dataset the number of images and the
digests of their ids, 6 bytes each. The digests are compact and do not reveal file names.
"""

import binascii
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from unicodedata import normalize

from pinmem_core.preparation import PreparedDataset, Samples

RECORD = "trained_on"
"""Key of the record in a checkpoint's `config.json`."""
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
        sources = tuple(map(str, config.get("training", {}).get("sources", ())))
        digests = _parsed(config.get(RECORD))
        if digests is not None:
            return cls(sources, digests)
        try:
            record = cls.of_samples(sources, (samples or {})["train"].values())
        except (KeyError, AttributeError, TypeError, ValueError):  # missing or damaged
            return cls(sources)
        return record if record.digests else cls(sources)

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
    if not isinstance(record, dict) or not record:
        return None
    digests = {}
    for dataset, entry in record.items():
        try:
            joined = b64decode(entry["ids"], validate=True)
            count = entry["images"]
        except (KeyError, TypeError, ValueError, binascii.Error):
            return None
        if len(joined) != _BYTES * count:
            return None
        digests[dataset] = frozenset(
            joined[start : start + _BYTES] for start in range(0, len(joined), _BYTES)
        )
    return digests
