"""Sky, street surface and buildings."""

from __future__ import annotations

import numpy as np

from pinmem_core.synthetic.brush import BLACK, Brush, rgb
from pinmem_core.synthetic.canvas import Colour
from pinmem_core.synthetic.layout import END, LANE, Kerbside, Street, Thing
from pinmem_core.synthetic.projection import FAR, NEAR, Floats, Floor, Front, Side
from pinmem_core.synthetic.shapes import Ellipse, Lattice, Polygon, Rect, Shape, texture

STOREY = 3.2
_DETAIL = 45.0  # depth beyond which frames and shop fronts blur together


def sky(brush: Brush) -> None:
    """Paint the gradient and the clouds over the whole frame."""
    light = brush.style.light
    top, low = brush.blend(light.zenith), brush.blend(light.horizon)
    cloud = np.maximum(low, top) * 0.5 + 0.45
    drift = float(brush.rng.uniform(0, 256))

    def paint(s: Floats, t: Floats) -> Floats:
        height = np.clip(t / 140, 0, 1) ** np.float32(0.7)
        base = low[:, None, None] + height * (top - low)[:, None, None]
        if light.clouds == 0:
            return np.asarray(base)
        cover = texture(s * 0.35 + drift, t + drift, 0.8)
        weight = np.clip(cover * 3.0 + light.clouds - 0.4, 0, 1) * (0.25 + 0.75 * light.clouds)
        return np.asarray(base + weight * (cloud[:, None, None] - base))

    brush.fill(Front(FAR - 1), Rect(-600, -5, 600, 600), paint, "sky", glow=True)


def backdrop(brush: Brush) -> None:
    """Close the view at the end of the street with far houses and trees."""
    x = -160.0
    while x < 160:
        width = float(brush.rng.uniform(14, 34))
        plane = Front(END + 20 + abs(x) / 5)
        if brush.chance(0.6):
            height = STOREY * float(brush.rng.integers(*brush.style.town.storeys)) + 3
            front = Rect(x, 0, x + width, height)
            panes = Lattice(front.bounds, (3.5, STOREY), (0.4, 0.5))
            wall = brush.pick(brush.style.palette.facade) * 0.9
            if brush.fill(plane, front, wall, "building"):
                brush.fill(plane, panes, brush.pick(brush.style.palette.glass), opacity=0.6)
        else:
            crown = Ellipse(x + width / 2, 2, width * 0.7, float(brush.rng.uniform(5, 10)), 0.3)
            brush.fill(plane, crown, brush.blend(brush.style.palette.leaves) * 0.8, "vegetation")
        x += width * 0.85


def ground(brush: Brush, street: Street) -> None:
    """Paint road, pavements, strips of grass and the markings."""
    palette = brush.style.palette
    edge = 300.0
    land = Rect(-edge, NEAR, edge, FAR)
    brush.fill(Floor(), land, brush.grained(brush.blend(palette.grass), 9, 1.3), "terrain")
    asphalt = brush.blend(palette.road)
    for side in street.sides:
        _pavement(brush, side)
    tar = brush.grained(asphalt, 11, 0.7)
    left, right = street.sides
    road = Rect(-left.kerb, NEAR, right.kerb, FAR)
    brush.fill(Floor(), road, tar, "road")
    if street.crossing:
        z0, z1 = street.crossing
        brush.fill(Floor(), Rect(-edge, z0, edge, z1), tar, "road")
    for _ in range(int(brush.rng.integers(0, 5))):
        x, z = brush.rng.uniform(-left.kerb, right.kerb), brush.rng.uniform(3, 25)
        patch = Rect(x, z, x + brush.rng.uniform(0.5, 2), z + brush.rng.uniform(0.6, 5))
        brush.fill(Floor(), patch, asphalt * 0.8, opacity=palette.grain)
    _markings(brush, street)
    if street.rails is not None:
        for x in (street.rails - 0.72, street.rails + 0.72):
            brush.fill(Floor(), Rect(x - 0.07, NEAR, x + 0.07, END), rgb("4a4644"))


def _pavement(brush: Brush, side: Kerbside) -> None:
    palette = brush.style.palette

    def strip(near: float, far: float) -> Rect:
        low, high = sorted((side.side * near, side.side * far))
        return Rect(low, NEAR, high, FAR)

    stone = brush.blend(palette.walk)
    slabs = strip(side.kerb, side.walk + 1.5)
    brush.fill(Floor(), slabs, brush.grained(stone, 7), "sidewalk")
    joints = Lattice(slabs.bounds, (1.2, 1.0), (0.06, 1.0))
    brush.fill(Floor(), joints, stone * 0.8, opacity=0.5)
    if side.verge > side.kerb:
        grass = brush.grained(brush.blend(palette.grass), 12, 1.3)
        brush.fill(Floor(), strip(side.kerb + 0.2, side.verge), grass, "terrain")
    kerb = brush.blend(palette.kerb)
    brush.fill(Floor(), strip(side.kerb, side.kerb + 0.25), kerb, "sidewalk")
    brush.fill(Floor(), strip(side.kerb - 0.12, side.kerb), kerb * 0.55, "sidewalk")


def _markings(brush: Brush, street: Street) -> None:
    swatch = brush.style.palette.marking
    line, middle = brush.pick(swatch[:1]), brush.pick(swatch[-1:])
    wear = 1 - 0.5 * brush.style.palette.grain
    first, last = street.lanes[0], street.lanes[-1]
    lanes = (first - LANE / 2, NEAR, last + LANE / 2, END)
    brush.fill(Floor(), Lattice(lanes, (LANE, 7.0), (0.16 / LANE, 0.4)), line, opacity=wear)
    for x, paint in ((first, line), (street.centre, middle), (last, line)):
        brush.fill(Floor(), Rect(x - 0.08, NEAR, x + 0.08, END), paint, opacity=wear)
    left, right = street.sides
    width = -left.kerb + 0.3, right.kerb - 0.3
    if street.crossing:
        z0, z1 = street.crossing
        gap = Rect(width[0], z0, width[1], z1)
        brush.fill(Floor(), gap, brush.pick(brush.style.palette.road), opacity=0.85)
        for z in (z0 - 3.2, z1 + 0.8):
            bars = Lattice((width[0], z, width[1], z + 2.4), (1.0, 2.4), (0.5, 1.0))
            brush.fill(Floor(), bars, line, opacity=wear)


def _facade_texture(brush: Brush, wall: Floats) -> Colour:
    """Plaster that darkens towards the street, under some rows of bricks."""
    grain = brush.style.palette.grain
    shift = float(brush.rng.uniform(0, 20))
    if grain == 0:
        return wall

    def paint(s: Floats, t: Floats) -> Floats:
        stain = 0.75 * grain * texture(s + shift, t, 9.0)
        return wall[:, None, None] * (stain + np.minimum(0.9 + t / 60, 1))

    return paint


def building(brush: Brush, thing: Thing) -> None:
    """Draw a house: a side along the street and an end wall towards the camera."""
    style, rng = brush.style, brush.rng
    storeys = int(rng.integers(style.town.storeys[0], style.town.storeys[1] + 1))
    eaves, length, depth = storeys * STOREY + 1.0, thing.length, 14.0
    wall = brush.pick(style.palette.facade)
    paint = _facade_texture(brush, wall)
    x0, x1 = sorted((thing.x, thing.x + thing.side * depth))
    brush.shadow((x0, thing.z, x1, thing.z + length), min(eaves, 9.0))
    end = Front(thing.z, thing.x, thing.side)
    if brush.fill(end, Rect(0, 0, depth, eaves), paint, "building"):
        _windows(brush, end, depth, storeys)
    street = Side(thing.x, thing.z)
    roof = str(rng.choice(tuple(style.town.roofs), p=tuple(style.town.roofs.values())))
    gables = _gable(roof, length, eaves)
    hidden = not brush.fill(street, Rect(0, 0, length, eaves), paint, "building")
    cover = brush.pick(style.palette.roof) if roof == "gable" else paint
    for part in gables:
        brush.fill(street, part, cover, "building")
    if hidden:
        return
    _windows(brush, street, length, storeys)
    brush.fill(street, Rect(0, eaves - 0.4, length, eaves), wall * rng.uniform(0.6, 1.2))
    if thing.z < _DETAIL:
        _shopfront(brush, street, length)


def _gable(roof: str, length: float, eaves: float) -> list[Shape]:
    """What rises above the eaves; nothing for a flat roof."""
    rise = min(length * 0.42, 5.0)
    if roof == "gable":
        return [Polygon([(0, eaves), (length, eaves), (length / 2, eaves + rise)])]
    steps = 4 if roof == "stepped" else 0
    tread = length / (2 * steps + 1)
    return [
        Rect(k * tread, eaves, length - k * tread, eaves + rise * k / steps)
        for k in range(1, steps + 1)
    ]


def _windows(brush: Brush, plane: Front | Side, width: float, storeys: int) -> None:
    """Set rows of panes above the ground floor; some are lit."""
    rng, light = brush.rng, brush.style.light
    columns = max(int(width / rng.uniform(1.9, 3.4)), 1)
    pitch = width / columns, STOREY
    share = float(rng.uniform(0.35, 0.8)), float(rng.uniform(0.45, 0.7))
    box = (0.0, STOREY + 0.6, width, storeys * STOREY + 0.6)
    glass = brush.pick(brush.style.palette.glass)
    if plane.z < _DETAIL:
        frame = Lattice(box, pitch, (min(share[0] + 0.12, 1.0), min(share[1] + 0.1, 1.0)))
        brush.fill(plane, frame, brush.pick(brush.style.palette.facade) * 1.05)
    bright = brush.blend(light.horizon)
    salt = int(rng.integers(1000))

    def mirror(s: Floats, t: Floats) -> Floats:
        shine = 0.45 * np.clip(texture(s * 0.5, t + salt, 3.0) + 0.3, 0, 1)
        return np.asarray(glass[:, None, None] + shine * (bright - glass)[:, None, None])

    pane: Colour = mirror if brush.style.palette.grain else glass
    brush.fill(plane, Lattice(box, pitch, share), pane)
    if light.windows:
        lit = Lattice(box, pitch, share, light.windows, salt)
        brush.fill(plane, lit, rgb(str(rng.choice(["ffd890", "ffe8c0", "f8b860"]))), glow=True)


def _shopfront(brush: Brush, plane: Side, width: float) -> None:
    rng, palette = brush.rng, brush.style.palette
    if brush.chance(0.5):
        brush.fill(plane, Rect(0, 0, width, 3.0), brush.pick(palette.facade) * 0.75)
        panes = Lattice((0, 0.5, width, 2.6), (width / max(int(width / 3), 1), 2.1), (0.8, 1.0))
        lit = brush.style.light.lamps and brush.chance(0.6)
        glass = rgb("ffe0a8") if lit else brush.pick(palette.glass)
        brush.fill(plane, panes, glass, glow=lit, opacity=0.9)
        awning = Rect(0, 2.6, width, 3.3)
        brush.fill(plane, awning, brush.pick(palette.coaches))
    else:
        door = float(rng.uniform(0.5, max(width - 2, 0.6)))
        brush.fill(plane, Rect(0, 0, width, 0.6), BLACK, opacity=0.25)
        brush.fill(plane, Rect(door, 0, door + 1.2, 2.3), brush.pick(palette.clothes) * 0.8)
