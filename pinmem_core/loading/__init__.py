"""From manifests to training batches: domains, sampling, augmentation."""

from pinmem_core.loading.batches import Batch, DomainLoader
from pinmem_core.loading.domains import Domain, load_domains

__all__ = ["Batch", "Domain", "DomainLoader", "load_domains"]
