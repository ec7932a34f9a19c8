"""A decoder in one file: a projection and a classifier, without a fine path."""

from torch import nn

from pinmem_core.models.decoders.base import Decoder, conv_bn_relu, initialize


class Flat(Decoder):
    def __init__(self, low_channels, top_channels, output_stride, dim, num_classes):
        super().__init__()
        self.projection = conv_bn_relu(top_channels, dim)
        self.classifier = nn.Conv2d(dim, num_classes, 1)
        initialize(self)

    def project(self, features):
        return self.projection(features.top)

    def decode(self, refined, features):
        return self.classifier(refined)


DECODERS = {"flat": Flat}
