"""The interface of an adapter."""

from abc import ABC, abstractmethod
from typing import ClassVar

from pinmem_core.config import Settings
from pinmem_core.models.backbones.base import Backbone
from pinmem_core.models.decoders.base import Decoder


class Adapter(Settings, ABC):
    """A change of a backbone, or of a decoder. The fields of a subclass are its settings."""

    freezes: ClassVar[bool] = False
    """Whether the pretrained weights are frozen before `insert`, which may release some."""

    @abstractmethod
    def insert(self, backbone: Backbone) -> None:
        """Change the modules of `backbone` in place; keep or convert its weights.

        Raises:
            ConfigError: The adapter does not fit this backbone.
        """

    def insert_into_decoder(self, decoder: Decoder, backbone: Backbone) -> None:
        """Change the modules of `decoder` in place, after `insert`; by default none.

        Raises:
            ConfigError: The adapter does not fit this decoder.
        """

    def initialize(self, backbone: Backbone) -> None:
        """Initialise the inserted modules from the pretrained weights, before training."""
