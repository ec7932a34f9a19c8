"""Trees, bushes, hedges, fences, walls, and everything on poles."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pinmem_core.synthetic.brush import BLACK, Brush, rgb
from pinmem_core.synthetic.canvas import Colour
from pinmem_core.synthetic.layout import Thing
from pinmem_core.synthetic.projection import Floats, Front, Side
from pinmem_core.synthetic.shapes import (
    Ellipse,
    Lattice,
    Polygon,
    Rect,
    Shape,
    line,
    regular,
    texture,
)

WHITE, RED, BLUE, YELLOW = rgb("f0f0ec"), rgb("c8201c"), rgb("1c50a8"), rgb("e8b818")
GREEN = rgb("18783c")


def _foliage(brush: Brush, leaf: Floats, low: float, high: float) -> Colour:
    """Leaves lit from above and, where surfaces have texture, clumped."""
    grain = brush.style.palette.grain
    shift = float(brush.rng.uniform(0, 20))

    def paint(s: Floats, t: Floats) -> Floats:
        height = np.clip((t - low) / (high - low), 0, 1)
        tone = 0.65 + 0.45 * height
        if grain:
            tone = tone * (1 + (0.8 + 1.4 * grain) * texture(s + shift, t, 14.0))
        return np.asarray(leaf[:, None, None] * tone)

    return paint


def tree(brush: Brush, thing: Thing) -> None:
    """Draw a trunk with a round or conical crown."""
    rng, palette, town = brush.rng, brush.style.palette, brush.style.town
    plane = Front(thing.z, thing.x)
    tall, radius = float(rng.uniform(4.5, 8.5)), float(rng.uniform(1.3, 2.3))
    fork = float(rng.uniform(1.8, 2.6))
    leaf = brush.blend(palette.leaves)
    paint = _foliage(brush, leaf, fork, tall)
    rough = 0.35 if palette.grain else 0.0
    brush.shadow((thing.x - 0.15, thing.z, thing.x + 0.15, thing.z + 0.2), fork)
    _crown_shadow(brush, thing, (fork + tall) / 2, radius)
    trunk = line((0, 0), (rng.uniform(-0.2, 0.2), fork + 0.6), rng.uniform(0.22, 0.4))
    brush.fill(plane, trunk, brush.grained(brush.pick(palette.trunk), 20), "vegetation")
    names = tuple(town.crowns)
    if str(rng.choice(names, p=[town.crowns[n] for n in names])) == "cone":
        for k in range(3):
            low = fork - 0.6 + (tall - fork) * k / 3.5
            wide = radius * (0.85 - 0.2 * k)
            tier = Polygon([(-wide, low), (wide, low), (0, low + (tall - fork) * 0.55)])
            brush.fill(plane, tier, paint, "vegetation")
        return
    middle, half = (fork + tall) / 2, (tall - fork) / 2
    brush.fill(plane, Ellipse(0, middle, radius, half, rough), paint, "vegetation")
    for s in (-0.5, 0.55) if thing.z < 35 else ():
        t = middle + half * rng.uniform(-0.5, 0.2)
        clump = Ellipse(s * radius * 1.2, t, radius * 0.6, half * 0.55, rough)
        brush.fill(plane, clump, paint, "vegetation")


def _crown_shadow(brush: Brush, thing: Thing, height: float, radius: float) -> None:
    spot = Ellipse(
        thing.x + height * brush.sun.right,
        thing.z + height * brush.sun.ahead,
        radius * 1.1,
        radius * 1.1,
        0.3,
    )
    brush.canvas.shade(spot, brush.style.light.shadow)


def bush(brush: Brush, thing: Thing) -> None:
    """Draw a low bush."""
    radius, tall = float(brush.rng.uniform(0.6, 1.3)), float(brush.rng.uniform(0.9, 1.8))
    paint = _foliage(brush, brush.blend(brush.style.palette.leaves), 0, tall)
    shape = Ellipse(0, tall * 0.4, radius, tall * 0.6, 0.3)
    brush.fill(Front(thing.z, thing.x), shape, paint, "vegetation")


def _border(brush: Brush, thing: Thing, shape: Rect, colour: Colour, name: str) -> Side:
    """Stand a strip along the street, with its end towards the camera."""
    plane = Side(thing.x, thing.z)
    brush.shadow((thing.x - 0.1, thing.z, thing.x + 0.1, thing.z + thing.length), shape.t1)
    end = Front(thing.z, thing.x, thing.side)
    brush.fill(end, Rect(0, 0, 0.3, shape.t1), colour, name)
    brush.fill(plane, shape, colour, name)
    return plane


def hedge(brush: Brush, thing: Thing) -> None:
    """Draw a clipped hedge along the street."""
    tall = float(brush.rng.uniform(1.1, 2.6))
    paint = _foliage(brush, brush.blend(brush.style.palette.leaves), 0, tall)
    _border(brush, thing, Rect(0, 0, thing.length, tall), paint, "vegetation")


def wall(brush: Brush, thing: Thing) -> None:
    """Draw a solid wall with a coping, of plaster, bricks or concrete slabs."""
    tall, length = float(brush.rng.uniform(1.5, 3.0)), thing.length
    stone = brush.pick(brush.style.palette.wall)
    plane = _border(brush, thing, Rect(0, 0, length, tall), brush.grained(stone, 9), "wall")
    pitch = (0.5, 0.2) if brush.chance(0.5) else (2.4, tall)
    joints = Lattice((0, 0, length, tall), pitch, (1.0, 0.14) if pitch[0] < 1 else (0.03, 1.0))
    brush.fill(plane, joints, stone * 0.6, opacity=0.5)
    brush.fill(plane, Rect(0, tall - 0.16, length, tall), stone * 1.15)


def fence(brush: Brush, thing: Thing) -> None:
    """Draw a see-through fence of bars, pickets or mesh; its label covers the gaps too."""
    tall, length = float(brush.rng.uniform(1.2, 2.1)), thing.length
    paint, box = brush.pick(brush.style.palette.fence), (0.0, 0.1, length, tall)
    plane = Side(thing.x, thing.z)
    brush.fill(plane, Rect(*box), paint, "fence", opacity=0.18)
    kind = str(brush.rng.choice(["bars", "pickets", "mesh"]))
    pitch, share = {"bars": (0.28, 0.3), "pickets": (0.34, 0.6), "mesh": (0.22, 0.22)}[kind]
    brush.fill(plane, Lattice(box, (pitch, tall), (share, 1.0)), paint)
    if kind == "mesh":
        brush.fill(plane, Lattice(box, (length, 0.22), (1.0, 0.22)), paint)
    for t in (0.3, tall - 0.15):
        brush.fill(plane, Rect(0, t - 0.06, length, t + 0.06), paint)
    posts = Lattice((0, 0, length, tall + 0.1), (2.5, tall + 0.1), (0.06, 1.0))
    brush.fill(plane, posts, paint * 0.8, "fence")


def _pole(brush: Brush, plane: Front, tall: float, width: float) -> Floats:
    """Stand a pole at the middle of a plane; returns its colour."""
    paint = brush.pick(brush.style.palette.pole)
    brush.shadow((plane.x - width / 2, plane.z, plane.x + width / 2, plane.z + width), tall)
    brush.fill(plane, Rect(-width / 2, 0, width / 2, tall), paint, "pole")
    brush.fill(plane, Rect(width * 0.1, 0, width / 2, tall), BLACK, opacity=0.3)
    return paint


def lamp(brush: Brush, thing: Thing) -> None:
    """Draw a street lamp with an arm over the road."""
    plane, tall = Front(thing.z, thing.x, -thing.side), float(brush.rng.uniform(5.5, 8))
    paint = _pole(brush, plane, tall, 0.22)
    brush.fill(plane, line((0, tall - 0.1), (1.6, tall + 0.2), 0.14), paint, "pole")
    head = Rect(1.2, tall + 0.05, 2.0, tall + 0.3)
    brush.fill(plane, head, paint, "pole")
    if brush.style.light.lamps:
        bulb = Ellipse(1.6, tall + 0.02, 0.35, 0.14)
        brush.fill(plane, bulb, rgb("ffe4b0"), glow=True)


def signal(brush: Brush, thing: Thing) -> None:
    """Draw a traffic light on its pole."""
    plane = Front(thing.z, thing.x)
    _pole(brush, plane, 3.6, 0.18)
    _signal_box(brush, Front(thing.z - 0.02, thing.x), 0.0, 2.5)


def mast(brush: Brush, thing: Thing) -> None:
    """Draw traffic lights hanging from an arm over the road."""
    plane = Front(thing.z, thing.x, -thing.side)
    paint = _pole(brush, plane, 5.9, 0.26)
    brush.fill(plane, line((0, 5.6), (7.0, 5.9), 0.2), paint, "pole")
    for s in (3.2, 6.4):
        _signal_box(brush, Front(thing.z - 0.02, thing.x, -thing.side), s, 4.75)
    _signal_box(brush, Front(thing.z - 0.02, thing.x, -thing.side), 0.0, 2.4)


def _signal_box(brush: Brush, plane: Front, s: float, low: float) -> None:
    """Three lamps in a housing, one of them on."""
    half, tall = 0.26, 1.3
    box = brush.pick(brush.style.palette.lamp_box)
    brush.fill(plane, Rect(s - half, low, s + half, low + tall), box, "traffic light")
    on = int(brush.rng.integers(3))
    for i, colour in enumerate(("30e870", "f8c028", "f83828")):
        lens = Ellipse(s, low + 0.25 + 0.4 * i, 0.16, 0.16)
        brush.fill(plane, lens, rgb(colour) * (1.0 if i == on else 0.2), glow=i == on)


def sign(brush: Brush, thing: Thing) -> None:
    """Draw one or two signs on a pole; some turn their back."""
    low = float(brush.rng.uniform(2.0, 2.5))
    plate = Front(thing.z - 0.02, thing.x)
    kinds = tuple(_SIGNS)
    count = 1 + brush.chance(0.3)
    _pole(brush, Front(thing.z, thing.x), low + 0.75 * count, 0.13)
    for i in range(count):
        centre = low + 0.4 + 0.85 * i
        for shape, colour in _SIGNS[str(brush.rng.choice(kinds))](centre):
            brush.fill(plate, shape, colour, "traffic sign")


def _stop(t: float) -> list[tuple[Shape, Floats]]:
    turn = np.pi / 8
    text = Lattice((-0.27, t - 0.09, 0.27, t + 0.09), (0.14, 0.18), (0.7, 1.0))
    return [
        (regular(0, t, 0.44, 8, turn), WHITE),
        (regular(0, t, 0.39, 8, turn), RED),
        (text, WHITE),
    ]


def _limit(t: float) -> list[tuple[Shape, Floats]]:
    digits = Lattice((-0.17, t - 0.14, 0.17, t + 0.14), (0.17, 0.28), (0.6, 1.0))
    return [
        (Ellipse(0, t, 0.4, 0.4), RED),
        (Ellipse(0, t, 0.29, 0.29), WHITE),
        (digits, rgb("181818")),
    ]


def _warning(t: float) -> list[tuple[Shape, Floats]]:
    mark = Rect(-0.05, t - 0.14, 0.05, t + 0.16)
    return [(regular(0, t, 0.5, 3), RED), (regular(0, t, 0.34, 3), WHITE), (mark, rgb("181818"))]


def _give_way(t: float) -> list[tuple[Shape, Floats]]:
    return [(regular(0, t, 0.5, 3, np.pi), RED), (regular(0, t, 0.33, 3, np.pi), WHITE)]


def _diamond(t: float) -> list[tuple[Shape, Floats]]:
    return [(regular(0, t, 0.48, 4), WHITE), (regular(0, t, 0.38, 4), YELLOW)]


def _parking(t: float) -> list[tuple[Shape, Floats]]:
    letter = [(Rect(-0.14, t - 0.22, -0.05, t + 0.24), WHITE)]
    letter += [
        (Rect(-0.1, t, 0.16, t + 0.24), WHITE),
        (Rect(-0.05, t + 0.07, 0.07, t + 0.17), BLUE),
    ]
    return [(Rect(-0.36, t - 0.38, 0.36, t + 0.38), BLUE), *letter]


def _street_name(t: float) -> list[tuple[Shape, Floats]]:
    text = Lattice((-0.6, t - 0.08, 0.6, t + 0.08), (0.2, 0.16), (0.6, 1.0))
    return [(Rect(-0.75, t - 0.2, 0.75, t + 0.2), GREEN), (text, WHITE)]


_SIGNS: Mapping[str, Callable[[float], list[tuple[Shape, Floats]]]] = {
    "stop": _stop,
    "limit": _limit,
    "warning": _warning,
    "give way": _give_way,
    "diamond": _diamond,
    "parking": _parking,
    "street name": _street_name,
}
