"""Cars, trucks, buses, trams and two-wheelers."""

from __future__ import annotations

from typing import NamedTuple

from pinmem_core.synthetic.brush import BLACK, Brush, rgb
from pinmem_core.synthetic.layout import Heading, Thing
from pinmem_core.synthetic.people import rider
from pinmem_core.synthetic.projection import Floats, Floor, Front, Plane, Side
from pinmem_core.synthetic.shapes import Ellipse, Lattice, Polygon, Rect, line

TYRE = rgb("1a1a1c")
RIM = rgb("8a8c90")
GLEAM = rgb("ffffff")
_DETAIL = 35.0  # depth beyond which small parts blur together


class Faces(NamedTuple):
    """Visible planes of a vehicle.

    ``side`` has its ``s`` from the front bumper to the rear; ``end`` has it from the middle and
    is None for a vehicle that crosses the view.
    """

    side: Plane
    end: Front | None


def faces(thing: Thing, width: float, length: float) -> Faces:
    """Planes of a vehicle of the given size."""
    if thing.heading in (Heading.LEFT, Heading.RIGHT):
        sign = 1 if thing.heading is Heading.LEFT else -1
        return Faces(Front(thing.z, thing.x - sign * length / 2, sign), None)
    inner = thing.x - thing.side * width / 2
    inner = inner if inner * thing.side > 0.05 else thing.side * 0.05
    if thing.heading is Heading.AWAY:
        return Faces(Side(inner, thing.z + length, -1), Front(thing.z, thing.x))
    return Faces(Side(inner, thing.z), Front(thing.z, thing.x))


def _stand(brush: Brush, thing: Thing, width: float, length: float, height: float) -> None:
    """Darken the street under and around a vehicle."""
    half, deep = width / 2, length
    if thing.heading in (Heading.LEFT, Heading.RIGHT):
        half, deep = length / 2, width
    box = (thing.x - half, thing.z, thing.x + half, thing.z + deep)
    brush.shadow(box, height)
    brush.contact(box)


def _wheel(brush: Brush, plane: Plane, s: float, radius: float, name: str) -> None:
    if brush.fill(plane, Ellipse(s, radius, radius, radius), TYRE, name):
        brush.fill(plane, Ellipse(s, radius, radius * 0.55, radius * 0.55), RIM)


def _lamps(brush: Brush, end: Front, thing: Thing, half: float, height: float) -> None:
    """Head or tail lights at both corners; they are lit in the dark."""
    burning = brush.style.light.lamps
    away = thing.heading is Heading.AWAY
    colour = rgb("e02818" if away else "fff4d0") if burning else rgb("a01c18" if away else "e8e8e0")
    for side in (-1, 1):
        lamp = Ellipse(side * (half - 0.22), height, 0.2, 0.12 if away else 0.14)
        brush.fill(end, lamp, colour, glow=burning)
        if burning and not away:
            halo = Ellipse(side * (half - 0.22), height, 0.4, 0.35)
            brush.fill(end, halo, colour, glow=True, opacity=0.35)


def car(brush: Brush, thing: Thing) -> None:
    """Draw a saloon, an estate or a small van."""
    rng, palette = brush.rng, brush.style.palette
    length, width = max(thing.length, 3.9), 1.8
    tall = float(rng.choice([1.42, 1.5, 1.65, 1.95], p=[0.4, 0.3, 0.2, 0.1]))
    paint, glass = brush.pick(palette.cars), brush.pick(palette.glass) * 0.6
    belt, back = 0.95 if tall < 1.9 else 1.1, float(rng.uniform(0.1, 0.9)) if tall < 1.6 else 0.1
    side, end = faces(thing, width, length)
    _stand(brush, thing, width, length, tall)
    brush.fill(Floor(tall), _roof(thing, length, width), paint, "car")
    brush.fill(Floor(belt), _roof(thing, length, width, 0.0, 0.0), paint * 0.95, "car")
    cabin = [(length * 0.2, belt), (length * 0.36, tall), (length - back - 0.3, tall)]
    body = [(0, 0.3), (0.02, 0.68), (length * 0.2, belt), (length - 0.05, belt), (length, 0.3)]
    brush.fill(side, Polygon([*cabin, (length - back + 0.15, belt)]), paint, "car")
    inset = [(length * 0.24, belt), (length * 0.37, tall - 0.1), (length - back - 0.4, tall - 0.1)]
    brush.fill(side, Polygon([*inset, (length - back - 0.1, belt)]), glass)
    pillar = length * 0.58
    brush.fill(side, Rect(pillar - 0.05, belt, pillar + 0.05, tall), paint)
    brush.fill(side, Polygon(body), paint, "car")
    if thing.z < _DETAIL:
        brush.fill(side, Rect(0, 0.28, length, 0.42), BLACK, opacity=0.45)
        brush.fill(side, Rect(0.1, belt - 0.12, length - 0.1, belt - 0.06), GLEAM, opacity=0.2)
    for s in (length * 0.19, length * 0.8):
        _wheel(brush, side, s, 0.33, "car")
    if end is not None:
        _car_end(brush, end, thing, paint, glass, (belt, tall))


def _roof(thing: Thing, length: float, width: float, nose: float = 0.36, tail: float = 0.1) -> Rect:
    """Top of a vehicle seen from above, between parts of its length from nose and tail."""
    if thing.heading in (Heading.LEFT, Heading.RIGHT):
        return Rect(thing.x - 0.2 * length, thing.z, thing.x + 0.3 * length, thing.z + width)
    first, last = (tail, nose) if thing.heading is Heading.AWAY else (nose, tail)
    half = width / 2 if nose == 0 else width * 0.42
    z0, z1 = thing.z + first * length, thing.z + (1 - last) * length
    return Rect(thing.x - half, z0, thing.x + half, z1)


def _car_end(
    brush: Brush,
    end: Front,
    thing: Thing,
    paint: Floats,
    glass: Floats,
    heights: tuple[float, float],
) -> None:
    belt, tall = heights
    screen = Front(end.z + (0.25 if thing.heading is Heading.AWAY else 0.9), end.x)
    top, low = 0.66, 0.86
    outline = [(-low, belt - 0.1), (low, belt - 0.1), (top, tall), (-top, tall)]
    brush.fill(screen, Polygon(outline), paint, "car")
    pane = [(-low + 0.12, belt), (low - 0.12, belt), (top - 0.06, tall - 0.1)]
    brush.fill(screen, Polygon([*pane, (-top + 0.06, tall - 0.1)]), glass)
    for s in (-0.68, 0.68):
        brush.fill(end, Rect(s - 0.13, 0, s + 0.13, 0.4), TYRE, "car")
    hood = belt if thing.heading is Heading.AWAY else belt - 0.15
    shell = [(-0.86, 0.22), (0.86, 0.22), (0.9, 0.5), (0.87, hood), (-0.87, hood), (-0.9, 0.5)]
    brush.fill(end, Polygon(shell), paint * 0.92, "car")
    _lamps(brush, end, thing, 0.9, 0.7)
    if thing.z > _DETAIL:
        return
    brush.fill(end, Rect(-0.86, 0.22, 0.86, 0.4), BLACK, opacity=0.5)
    if thing.heading is Heading.TOWARD:
        brush.fill(end, Rect(-0.5, 0.42, 0.5, 0.62), BLACK, opacity=0.6)
    brush.fill(end, Rect(-0.26, 0.44, 0.26, 0.56), rgb("e8e8e0"))


def truck(brush: Brush, thing: Thing) -> None:
    """Draw a cab with a separate, taller load."""
    palette, length, width = brush.style.palette, thing.length, 2.4
    cab, load = brush.pick(palette.cars), brush.pick(palette.coaches)
    glass = brush.pick(palette.glass) * 0.6
    tall, split = float(brush.rng.uniform(3.1, 3.7)), 2.0
    side, end = faces(thing, width, length)
    _stand(brush, thing, width, length, tall)
    canvas_cover = brush.chance(0.4)
    brush.fill(side, Rect(0.2, 0.45, length, 0.95), rgb("2c2c2e"), "truck")
    nose = [(0, 0.4), (0.05, 1.4), (0.4, 2.55), (split - 0.2, 2.6), (split - 0.2, 0.4)]
    brush.fill(side, Polygon(nose), cab, "truck")
    brush.fill(side, Polygon([(0.3, 1.45), (0.6, 2.3), (1.4, 2.3), (1.4, 1.45)]), glass)
    crate = Rect(split, 0.9, length, tall)
    brush.fill(side, crate, brush.grained(load, 4), "truck")
    if canvas_cover:
        ribs = Lattice(crate.bounds, (0.9, tall), (0.12, 1.0))
        brush.fill(side, ribs, BLACK, opacity=0.25)
    else:
        stripe = Rect(split + 0.5, 1.7, length - 0.5, 2.5)
        brush.fill(side, stripe, brush.pick(palette.coaches))
    for s in (1.0, length - 2.2, length - 1.1):
        _wheel(brush, side, s, 0.48, "truck")
    if end is None:
        return
    for s in (-0.9, 0.9):
        brush.fill(end, Rect(s - 0.2, 0, s + 0.2, 0.7), TYRE, "truck")
    brush.fill(end, Rect(-1.15, 0.4, 1.15, 0.9), rgb("2c2c2e"), "truck")
    if thing.heading is Heading.AWAY:
        brush.fill(end, Rect(-1.2, 0.85, 1.2, tall), load * 0.92, "truck")
        doors = Lattice((-1.2, 0.85, 1.2, tall), (1.2, tall), (0.94, 1.0))
        brush.fill(end, doors, load)
        for s in (-0.5, 0.5):
            brush.fill(end, Rect(s - 0.04, 0.95, s + 0.04, tall - 0.1), BLACK, opacity=0.4)
    else:
        box = Front(end.z + split, end.x)
        brush.fill(box, Rect(-1.2, 0.9, 1.2, tall), load * 0.8, "truck")
        brush.fill(end, Rect(-1.15, 0.4, 1.15, 2.6), cab, "truck")
        brush.fill(end, Rect(-1.0, 1.45, 1.0, 2.35), glass)
        brush.fill(end, Rect(-0.7, 0.7, 0.7, 1.2), BLACK, opacity=0.5)
    _lamps(brush, end, thing, 1.15, 0.75)


def bus(brush: Brush, thing: Thing) -> None:
    """Draw a city bus: one long box with a band of windows, doors and large wheels."""
    palette, length, width, tall = brush.style.palette, thing.length, 2.5, 3.1
    paint, glass = brush.pick(palette.coaches), brush.pick(palette.glass) * 0.6
    lit = brush.style.light.windows > 0.2
    pane, glow = (rgb("e8d8a8"), True) if lit else (glass, False)
    side, end = faces(thing, width, length)
    _stand(brush, thing, width, length, tall)
    brush.fill(side, Rect(0, 0.3, length, tall), paint, "bus")
    brush.fill(side, Rect(0, 0.3, length, 0.9), brush.pick(palette.coaches))
    windows = Lattice((0.2, 1.35, length - 0.3, 2.6), (1.5, 1.25), (0.92, 1.0))
    brush.fill(side, windows, pane, glow=glow)
    for s in (0.5, length * 0.48):
        brush.fill(side, Rect(s, 0.4, s + 1.2, 2.6), glass)
        brush.fill(side, Rect(s + 0.56, 0.4, s + 0.64, 2.6), paint)
    for s in (2.6, length - 2.6):
        _wheel(brush, side, s, 0.5, "bus")
    if end is None:
        return
    for s in (-0.95, 0.95):
        brush.fill(end, Rect(s - 0.18, 0, s + 0.18, 0.6), TYRE, "bus")
    brush.fill(end, Rect(-1.25, 0.3, 1.25, tall), paint * 0.95, "bus")
    low = 1.6 if thing.heading is Heading.AWAY else 1.15
    brush.fill(end, Rect(-1.1, low, 1.1, 2.55), pane, glow=glow)
    brush.fill(end, Rect(-0.75, 2.65, 0.75, 2.95), rgb("1a1a18"))
    number = Lattice((-0.6, 2.7, 0.6, 2.9), (0.2, 0.2), (0.6, 1.0))
    brush.fill(end, number, rgb("f8b030"), glow=True)
    _lamps(brush, end, thing, 1.2, 0.75)


def train(brush: Brush, thing: Thing) -> None:
    """Draw a tram: jointed cars with skirts down to the rails and a pantograph."""
    palette, length, width, tall = brush.style.palette, thing.length, 2.5, 3.5
    paint, trim = brush.pick(palette.coaches), brush.pick(palette.clothes)
    glass = brush.pick(palette.glass) * 0.5
    side, end = faces(thing, width, length)
    _stand(brush, thing, width, length, tall)
    nose = 1.0
    shell = [(0, 0.15), (0, 1.3), (nose, tall), (length, tall), (length, 0.15)]
    brush.fill(side, Polygon(shell), paint, "train")
    brush.fill(side, Rect(nose, 1.5, length, 2.75), glass)
    posts = Lattice((nose, 1.5, length, 2.75), (1.6, 1.25), (0.1, 1.0))
    brush.fill(side, posts, paint)
    brush.fill(side, Rect(0, 0.15, length, 0.75), trim)
    joints = Lattice((6.0, 0.15, length, tall), (7.0, tall), (0.08, 1.0))
    brush.fill(side, joints, rgb("28282a"))
    arm = [((3.0, tall), (4.2, tall + 0.8)), ((4.2, tall + 0.8), (3.4, tall + 1.5))]
    for a, b in [*arm, ((0, tall + 0.25), (length, tall + 0.25))]:
        brush.fill(side, line(a, b, 0.12), rgb("48484a"), "train")
    if end is None:
        return
    roof = Front(end.z + nose, end.x)
    brush.fill(roof, Rect(-1.25, 1.0, 1.25, tall), paint * 0.8, "train")
    face = [(-1.2, 0.15), (1.2, 0.15), (1.25, 1.3), (0.95, tall - 0.25), (0.6, tall)]
    brush.fill(
        end, Polygon([*face, (-0.6, tall), (-0.95, tall - 0.25), (-1.25, 1.3)]), paint, "train"
    )
    screen = [(-1.05, 1.35), (1.05, 1.35), (0.82, 2.75), (-0.82, 2.75)]
    brush.fill(end, Polygon(screen), glass)
    brush.fill(end, Rect(-0.5, 2.9, 0.5, 3.2), rgb("f8c048"), glow=True)
    brush.fill(end, Rect(-1.2, 0.15, 1.2, 0.7), trim)
    _lamps(brush, end, thing, 1.1, 0.95)


def _turned(brush: Brush, thing: Thing) -> Front:
    """Plane of a two-wheeler, at a random angle to the view; its front is on the left."""
    sign = 1 if thing.heading is Heading.LEFT else -1
    along = thing.heading in (Heading.AWAY, Heading.TOWARD)
    squeeze = brush.rng.uniform(0.3, 0.5) if along else brush.rng.uniform(0.65, 1.0)
    return Front(thing.z, thing.x, sign, float(squeeze))


def bicycle(brush: Brush, thing: Thing) -> None:
    """Draw a parked bicycle."""
    _bicycle(brush, _turned(brush, thing))


def cyclist(brush: Brush, thing: Thing) -> None:
    """Draw a bicycle with its rider."""
    plane = _turned(brush, thing)
    brush.shadow((thing.x - 0.5, thing.z, thing.x + 0.5, thing.z + 0.2), 1.7)
    _bicycle(brush, plane)
    rider(brush, plane, seat=(0.3, 0.98), grip=(-0.42, 1.05), foot=(0.02, 0.3))


def _bicycle(brush: Brush, plane: Front) -> None:
    frame = brush.pick(brush.style.palette.cars)
    brush.contact((plane.x - 0.6, plane.z - 0.05, plane.x + 0.6, plane.z + 0.1))
    for s in (-0.53, 0.53):
        brush.fill(plane, Ellipse(s, 0.36, 0.36, 0.36), TYRE, "bicycle", opacity=0.3)
        for r in (0.36, 0.3):
            spokes = TYRE if r > 0.33 else RIM
            brush.fill(plane, Ellipse(s, 0.36, r, r), spokes, opacity=0.8 if r > 0.33 else 0.45)
    tubes = [
        ((-0.53, 0.36), (-0.4, 0.95)),
        ((-0.38, 0.85), (0.02, 0.34)),
        ((0.02, 0.34), (0.22, 0.9)),
    ]
    tubes += [((-0.38, 0.85), (0.2, 0.8)), ((0.02, 0.34), (0.53, 0.36)), ((0.53, 0.36), (0.2, 0.8))]
    for a, b in tubes:
        brush.fill(plane, line(a, b, 0.09), frame, "bicycle")
    brush.fill(plane, line((-0.55, 1.02), (-0.36, 0.96), 0.08), TYRE, "bicycle")
    brush.fill(plane, line((0.08, 0.94), (0.36, 0.94), 0.09), TYRE, "bicycle")


def motorcycle(brush: Brush, thing: Thing) -> None:
    """Draw a parked motorcycle."""
    _motorcycle(brush, _turned(brush, thing))


def motorbike(brush: Brush, thing: Thing) -> None:
    """Draw a motorcycle with its rider."""
    plane = _turned(brush, thing)
    brush.shadow((thing.x - 0.5, thing.z, thing.x + 0.5, thing.z + 0.3), 1.5)
    _motorcycle(brush, plane)
    rider(brush, plane, seat=(0.32, 0.85), grip=(-0.45, 1.0), foot=(0.1, 0.3), helmet=True)


def _motorcycle(brush: Brush, plane: Front) -> None:
    paint = brush.pick(brush.style.palette.cars)
    brush.contact((plane.x - 0.9, plane.z - 0.1, plane.x + 0.9, plane.z + 0.2))
    for s in (-0.7, 0.68):
        _wheel(brush, plane, s, 0.34, "motorcycle")
    engine = [(-0.4, 0.25), (0.35, 0.25), (0.45, 0.6), (-0.45, 0.65)]
    brush.fill(plane, Polygon(engine), rgb("3a3a3e"), "motorcycle")
    brush.fill(plane, line((-0.7, 0.34), (-0.42, 1.0), 0.13), RIM, "motorcycle")
    brush.fill(plane, Ellipse(-0.2, 0.8, 0.34, 0.2), paint, "motorcycle")
    tail = [(0.05, 0.72), (0.6, 0.74), (0.9, 0.95), (0.05, 0.88)]
    brush.fill(plane, Polygon(tail), TYRE, "motorcycle")
    fairing = [(-0.62, 0.7), (-0.4, 0.62), (-0.35, 1.1), (-0.55, 1.15)]
    brush.fill(plane, Polygon(fairing), paint, "motorcycle")
    brush.fill(plane, line((0.2, 0.35), (0.95, 0.45), 0.1), RIM, "motorcycle")
    if brush.style.light.lamps:
        brush.fill(plane, Ellipse(-0.64, 0.92, 0.12, 0.12), rgb("fff0c0"), glow=True)
