"""Render a synthetic scene with its labels."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pinmem_core.label_space import CITYSCAPES, IGNORE_INDEX
from pinmem_core.synthetic import furniture, ground, lens, people, vehicles, weather
from pinmem_core.synthetic.brush import Brush, Sun
from pinmem_core.synthetic.canvas import OVERSAMPLE, Canvas
from pinmem_core.synthetic.layout import Thing, plan_street
from pinmem_core.synthetic.projection import NEAR, Camera, Front
from pinmem_core.synthetic.shapes import Ellipse
from pinmem_core.synthetic.styles import DOMAINS, Lens

_PAINTERS: Mapping[str, Callable[[Brush, Thing], None]] = {
    "building": ground.building,
    "wall": furniture.wall,
    "fence": furniture.fence,
    "hedge": furniture.hedge,
    "tree": furniture.tree,
    "bush": furniture.bush,
    "lamp": furniture.lamp,
    "signal": furniture.signal,
    "mast": furniture.mast,
    "sign": furniture.sign,
    "person": people.person,
    "car": vehicles.car,
    "truck": vehicles.truck,
    "bus": vehicles.bus,
    "train": vehicles.train,
    "bicycle": vehicles.bicycle,
    "cyclist": vehicles.cyclist,
    "motorcycle": vehicles.motorcycle,
    "motorbike": vehicles.motorbike,
}


class Scene(NamedTuple):
    """A synthetic scene.

    Attributes:
        image: RGB image, (H, W, 3).
        label: Cityscapes trainIds 0..18, (H, W); 255 is ignored.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]


def draw_scene(
    domain: str, index: int, *, seed: int = 0, size: tuple[int, int] = (256, 128)
) -> Scene:
    """Render one synthetic scene, a pure function of the arguments.

    Args:
        domain: Name of a domain in `DOMAINS`.
        index: Index of the scene in the domain, at least 0.
        seed: Random seed of all scenes, at least 0.
        size: Width and height in pixels.

    Raises:
        KeyError: The domain is unknown.
    """
    style = DOMAINS[domain]
    rng = np.random.default_rng((seed, zlib.crc32(domain.encode()), index))
    street = plan_street(rng, style.town)
    sun = Sun.rise(rng, style.light)
    camera = _place_camera(rng, style.lens, size)
    canvas = Canvas(camera, sun.factors(style.light), CITYSCAPES.train_ids["sky"])
    brush = Brush(canvas, style, sun, rng)
    ground.sky(brush)
    ground.ground(brush, street)
    ground.backdrop(brush)
    for thing in sorted(street.things, key=_painting_order):
        if _in_view(thing, camera):
            _PAINTERS[thing.kind](brush, thing)
    _bonnet(brush)
    return _finish(brush)


def _in_view(thing: Thing, camera: Camera) -> bool:
    """Return whether an object or its shadow can be visible."""
    far = thing.z + max(thing.length, 2.0)
    if far < NEAR:
        return False
    reach = {"building": 16.0, "mast": 8.0}.get(thing.kind, 3.0)
    depths = max(thing.z, NEAR), far
    us = [camera.column(x, z) for x in (thing.x - reach, thing.x + reach) for z in depths]
    return max(us) > 0 and min(us) < camera.width


def _painting_order(thing: Thing) -> tuple[bool, float]:
    """Sort buildings from near to far, then other objects from far to near."""
    if thing.kind == "building":
        return False, thing.z
    return True, -(thing.z + thing.length / 2)


def _place_camera(rng: np.random.Generator, pose: Lens, size: tuple[int, int]) -> Camera:
    width, height = (OVERSAMPLE * n for n in size)
    # Tall and wide frames keep about the same field of view.
    extent = max(width, 2 * height)
    return Camera(
        width,
        height,
        focal=extent * rng.uniform(*pose.focal),
        u0=width * rng.uniform(0.38, 0.62),
        v0=height * rng.uniform(*pose.horizon),
        eye=rng.uniform(*pose.eye),
    )


def _bonnet(brush: Brush) -> None:
    """Draw the bonnet of the own car, with ignored pixels, in some scenes."""
    camera, rng = brush.canvas.camera, brush.rng
    if not brush.chance(brush.style.lens.bonnet):
        return
    plane, metre = Front(NEAR), NEAR / camera.focal
    bottom = camera.eye - (camera.height - camera.v0) * metre
    rise = camera.height * metre * rng.uniform(0.04, 0.09)
    shape = Ellipse(rng.uniform(-0.05, 0.05), bottom, camera.width * metre * 0.6, rise)
    paint = brush.pick(brush.style.palette.cars) * 0.6
    brush.canvas.fill(plane, shape, paint, IGNORE_INDEX)
    gleam = Ellipse(shape.s, bottom, shape.rs * 0.8, rise * 0.75)
    brush.fill(plane, gleam, brush.pick(brush.style.light.horizon), opacity=0.2)


def _finish(brush: Brush) -> Scene:
    """Apply weather and camera effects."""
    style, rng = brush.style, brush.rng
    image, label, depth = brush.canvas.resolve()
    if style.weather.wet:
        wet = np.isin(label, (CITYSCAPES.train_ids["road"], CITYSCAPES.train_ids["sidewalk"]))
        image = weather.mirror_ground(image, wet, brush)
    image = weather.veil(image, depth, brush)
    if style.weather.rain:
        weather.rain(image, brush)
    if style.weather.drops:
        weather.drops(image, brush)
    return Scene(lens.expose(image, style.lens, rng), label)
