"""The classes that a target is scored in, where labels and network may have others."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pinmem_core.data.catalog import cards
from pinmem_core.inference.predictor import Prediction
from pinmem_core.label_space import CITYSCAPES, LabelSpace, label_space, label_spaces


@dataclass(frozen=True, eq=False)
class ScoredClasses:
    """The label space of the scores, and the way of the network's predictions into it.

    Attributes:
        space: Label space of the scores and of the target's labels.
        table: TrainIds of `space` by those of the network, (256,) uint8; 255 for a class of the
            network without counterpart, which is never right. None if both spaces are the same.
    """

    space: LabelSpace = CITYSCAPES
    table: NDArray[np.uint8] | None = None

    @classmethod
    def of(
        cls, network: LabelSpace, labels: LabelSpace, name: str | None = None
    ) -> "ScoredClasses":
        """Return the classes to score predictions of a network with labels.

        They are those of the network if the labels can be mapped to them; else those of the labels
        if the network's can be mapped to them; else the most classes of a known space to which both
        can be mapped.

        Args:
            network: Label space of the network.
            labels: Label space of the labels.
            name: Name of another label space: a known one, or that of the network or the labels.

        Raises:
            ConfigError: No such label space exists, or one of the two cannot be mapped to it.
        """
        spaces = [network, labels, *label_spaces().values()]
        common = [s for s in spaces if labels.maps_to(s) and network.maps_to(s)]
        if name:
            space = next((s for s in (network, labels) if s.name == name), None) or label_space(
                name
            )
        elif network in common or labels in common:
            space = network if network in common else labels
        else:
            space = max(common, key=len, default=network)
        space = space.canonical
        labels.table_to(space)  # raises
        return cls(space, None if space.same_as(network) else network.table_to(space))

    def predicted(self, train_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return predicted trainIds of the network, of any shape, as trainIds of `space`."""
        return train_ids if self.table is None else self.table[train_ids]

    def members(self, train_id: int) -> NDArray[np.intp]:
        """Return the trainIds of the network that are the class `train_id` of `space`."""
        return np.flatnonzero(self.predicted(np.arange(256, dtype=np.uint8)) == train_id)

    @property
    def missing(self) -> list[str]:
        """Names of the classes of `space` that no class of the network is."""
        return [name for k, name in enumerate(self.space.names) if not len(self.members(k))]

    def confidence(self, prediction: Prediction) -> NDArray[np.float32]:
        """Return the probability of each pixel's predicted class in `space`, (H, W) in 0..1.

        It is the sum over the classes of the network that are this class in `space`.

        Args:
            prediction: Prediction with its confidence, and with its probabilities where `table` is
                set.
        """
        assert prediction.confidence is not None
        if self.table is None:
            return prediction.confidence
        shares, sums = prediction.probabilities, prediction.confidence.copy()
        assert shares is not None
        classes = self.predicted(prediction.train_ids)
        for train_id in range(len(self.space)):
            members = self.members(train_id)
            if len(members) > 1:
                here = classes == train_id
                sums[here] = shares[members][:, here].sum(axis=0, dtype=np.float32)
        return sums.clip(0, 1)


def with_maps_of_cards(network: LabelSpace) -> LabelSpace:
    """Return the label space of a network with the maps that cards of its classes have today.

    A checkpoint has the maps of its training; a card may assign its classes to others since.
    """
    spaces = (card.space for card in cards().values())
    alike = [s for s in spaces if s.name == network.name and s.same_as(network)]
    maps = {name: groups for space in alike for name, groups in space.maps.items()}
    if not maps.keys() - network.maps.keys():
        return network
    return network.model_copy(update={"maps": {**maps, **network.maps}})


SAME_CLASSES = ScoredClasses()
"""The 19 classes of Cityscapes, for a network that has them."""
