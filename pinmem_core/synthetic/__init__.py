"""Synthetic street scenes in several domains, rendered with numpy.

All domains contain the same 19 classes and shapes. They differ in architecture, colours, light,
weather and camera, which creates a domain shift.

    >>> scene = draw_scene("arcade", 0)
    >>> scene.image.shape, scene.label.shape
    ((128, 256, 3), (128, 256))
"""

from pinmem_core.synthetic.scene import Scene, draw_scene
from pinmem_core.synthetic.styles import DOMAINS, Style

__all__ = ["DOMAINS", "Scene", "Style", "draw_scene"]
