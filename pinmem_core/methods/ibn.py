"""`ibn`: plain training of a backbone with instance norm (IBN-Net, Pan et al., ECCV 2018)."""

from collections.abc import Mapping
from typing import Any

from pinmem_core.methods.aggregate import Aggregate
from pinmem_core.models.adapters.ibn import IBN


class IBNNet(Aggregate):
    """IBN-Net: the step of `aggregate`, and instance norm in the early stages."""

    Config = IBN

    @classmethod
    def adapters(cls, settings: Any) -> Mapping[str, Mapping[str, Any]]:
        """Return the adapter `ibn` with the settings of the method."""
        return {"ibn": settings.model_dump()}


METHODS = {"ibn": IBNNet}
