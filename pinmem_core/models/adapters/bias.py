"""BitFit (Ben Zaken et al., ACL 2022): train the biases of a frozen backbone only."""

from typing import ClassVar

from pinmem_core.models.adapters.base import Adapter
from pinmem_core.models.backbones.base import Backbone


class Bias(Adapter):
    """Train the biases, including the shifts of norms, and freeze the other pretrained weights."""

    freezes: ClassVar[bool] = True

    def insert(self, backbone: Backbone) -> None:
        """Train the biases."""
        for name, parameter in backbone.pretrained().named_parameters():
            if name.rpartition(".")[2].endswith("bias"):
                parameter.requires_grad_(True)


ADAPTERS = {"bias": Bias}
