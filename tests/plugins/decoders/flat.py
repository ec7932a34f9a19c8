"""A decoder in one file: a projection and a classifier, without a fine path."""

from torch import nn

from pinmem_core.models.decoders.base import Decoder, conv_bn_relu, initialize


class Flat(Decoder):
    def __init__(self, channels, strides, dim, num_classes):
        super().__init__()
        self.dim = dim
        self.projection = conv_bn_relu(channels[-1], dim)
        self.classifier = nn.Conv2d(dim, num_classes, 1)
        initialize(self)

    def project(self, features):
        return self.projection(features[-1])

    def decode(self, refined, features):
        return self.classifier(refined)


DECODERS = {"flat": Flat}
