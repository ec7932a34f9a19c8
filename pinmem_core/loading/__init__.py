"""Training batches: domains, sampling, augmentation and loading."""

from pinmem_core.loading.batches import Batch
from pinmem_core.loading.domains import Domain, load_domains
from pinmem_core.loading.loader import DomainLoader

__all__ = ["Batch", "Domain", "DomainLoader", "load_domains"]
