"""The names that the original implementation gives to parameters and buffers."""

MEMORY = "memory.m_items"
"""The memory's slots, which the original keeps outside its state dict."""

_PREFIXES = {
    "trunk.conv1": "layer0.0",
    "trunk.bn1": "layer0.1",
    "trunk.layer": "layer",
    "head.pooled": "aspp.img_conv",
    "head.pyramid": "aspp.features",
    "head.branches": "aspp.conv2d_list",
    "head.projection": "bot_aspp",
    "head.fine": "bot_fine",
    "head.fusion": "final1",
    "head.classifier": "final2.0",
    "auxiliary": "dsn",
    "memory.slots": MEMORY,
    "memory.fuse": "memory.output",
    "memory.write_map": "memory.writenet.writefeat",
    "memory.classifier": "memory.clsfier",
}


def official_name(name: str) -> str:
    """Return the original's name of a segmenter's parameter or buffer.

    Args:
        name: Of a segmenter with a ResNet; the original has no other trunk.
    """
    prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
    return _PREFIXES[prefix] + name.removeprefix(prefix)
