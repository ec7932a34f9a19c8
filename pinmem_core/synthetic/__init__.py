"""Procedural street scenes in several domains, drawn with numpy alone.

Every domain shows the same 19 classes through the same shapes, but builds, paints, lights and
films them in its own way, so that a model trained on some domains meets a real shift on others.

    >>> scene = draw_scene("arcade", 0)
    >>> scene.image.shape, scene.label.shape
    ((128, 256, 3), (128, 256))
"""

from pinmem_core.synthetic.scene import Scene, draw_scene
from pinmem_core.synthetic.styles import DOMAINS, Style

__all__ = ["DOMAINS", "Scene", "Style", "draw_scene"]
