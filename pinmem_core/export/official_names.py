"""Names of parameters and buffers in the original implementation."""

MEMORY = "memory.m_items"
"""Name of the memory's slots, which the original stores outside of its state dict."""

_PREFIXES = {
    "backbone.conv1": "layer0.0",
    "backbone.bn1": "layer0.1",
    "backbone.layer": "layer",
    "decoder.pooled": "aspp.img_conv",
    "decoder.pyramid": "aspp.features",
    "decoder.branches": "aspp.conv2d_list",
    "decoder.projection": "bot_aspp",
    "decoder.fine": "bot_fine",
    "decoder.fusion": "final1",
    "decoder.classifier": "final2.0",
    "auxiliary": "dsn",
    "memory.slots": MEMORY,
    "memory.fuse": "memory.output",
    "memory.write_map": "memory.writenet.writefeat",
    "memory.classifier": "memory.clsfier",
}


def official_name(name: str) -> str:
    """Return the original's name of a segmenter's parameter or buffer.

    Args:
        name: Name in a segmenter with a ResNet, the only backbone of the original.
    """
    prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
    return _PREFIXES[prefix] + name.removeprefix(prefix)
