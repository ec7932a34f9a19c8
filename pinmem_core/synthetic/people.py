"""Pedestrians and riders."""

from __future__ import annotations

from pinmem_core.synthetic.brush import Brush, rgb
from pinmem_core.synthetic.layout import Heading, Thing
from pinmem_core.synthetic.projection import Floats, Front
from pinmem_core.synthetic.shapes import Ellipse, Point, Polygon, Rect, line

SKIN = ("f0c8a8", "d8a078", "a87048", "6c4430")
HAIR = ("2c2018", "5c3c20", "b89858", "8c8c8c", "181818")


def person(brush: Brush, thing: Thing) -> None:
    """Draw a walking or standing adult or child, sometimes with a bag or an umbrella."""
    rng, clothes = brush.rng, brush.style.palette.clothes
    tall = float(rng.uniform(1.1, 1.35) if brush.chance(0.12) else rng.uniform(1.6, 1.9))
    plane = Front(thing.z, thing.x, 1 if thing.heading is Heading.RIGHT else -1)
    brush.shadow((thing.x - 0.22, thing.z, thing.x + 0.22, thing.z + 0.15), tall)
    coat, trousers = brush.pick(clothes), brush.pick(clothes) * 0.8
    stride, hip = float(rng.uniform(0.03, 0.3)), tall * 0.5
    for step, shade in ((stride, 0.8), (-stride, 1.0)):
        brush.fill(plane, line((step * 0.2, hip), (step, 0.05), 0.17), trousers * shade, "person")
        if thing.z < 25:
            brush.fill(plane, Rect(step - 0.09, 0, step + 0.17, 0.09), rgb("201c1c"), "person")
    shoulder, hem = tall * 0.83, tall * (0.3 if brush.chance(0.25) else 0.46)
    if brush.chance(0.25):
        pack = Ellipse(-0.25, shoulder - 0.25, 0.16, 0.27)
        brush.fill(plane, pack, brush.pick(clothes) * 0.9, "person")
    trunk = [(-0.21, hem), (0.21, hem), (0.2, shoulder - 0.05), (0.1, shoulder), (-0.1, shoulder)]
    brush.fill(plane, Polygon([*trunk, (-0.2, shoulder - 0.05)]), coat, "person")
    swing = stride * 0.7
    hand = (swing, tall * 0.47)
    brush.fill(plane, line((0.02, shoulder - 0.05), hand, 0.12), coat * 0.82, "person")
    _head(brush, plane, (0.03, tall - 0.13), brush.pick(HAIR))
    if brush.chance(0.2):
        brush.fill(
            plane, Rect(swing - 0.14, hip - 0.4, swing + 0.14, hip - 0.08), coat * 0.5, "person"
        )
    if brush.style.weather.rain and brush.chance(0.4):
        dome = [(-0.55, tall + 0.1), (0.6, tall + 0.1), (0.35, tall + 0.38), (0.02, tall + 0.46)]
        canopy = Polygon([*dome, (-0.3, tall + 0.38)])
        brush.fill(plane, line((0.2, shoulder - 0.3), (0.02, tall + 0.4), 0.04), rgb("303030"))
        brush.fill(plane, canopy, brush.pick(clothes), "person")


def rider(
    brush: Brush, plane: Front, *, seat: Point, grip: Point, foot: Point, helmet: bool = False
) -> None:
    """Draw a rider with feet on the pedals and hands on the grips."""
    clothes = brush.style.palette.clothes
    coat, trousers = brush.pick(clothes), brush.pick(clothes) * 0.8
    lean = float(brush.rng.uniform(0.18, 0.35))
    shoulder = (seat[0] - lean, seat[1] + 0.58)
    knee = (seat[0] - 0.42, seat[1] - 0.2)
    for a, b in ((seat, knee), (knee, foot)):
        brush.fill(plane, line(a, b, 0.17), trousers, "rider")
    hem = [(seat[0] - 0.16, seat[1] - 0.08), (seat[0] + 0.18, seat[1] - 0.05)]
    back = [(shoulder[0] + 0.17, shoulder[1] - 0.02), (shoulder[0] - 0.12, shoulder[1])]
    brush.fill(plane, Polygon([*hem, *back]), coat, "rider")
    elbow = ((shoulder[0] + grip[0]) / 2 + 0.05, (shoulder[1] + grip[1]) / 2 - 0.1)
    for a, b in ((shoulder, elbow), (elbow, grip)):
        brush.fill(plane, line(a, b, 0.13), coat * 0.82, "rider")
    covered = helmet or brush.chance(0.4)
    top = brush.pick(brush.style.palette.cars if covered else HAIR)
    _head(brush, plane, (shoulder[0] - 0.08, shoulder[1] + 0.19), top, "rider")


def _head(brush: Brush, plane: Front, centre: Point, hair: Floats, name: str = "person") -> None:
    s, t = centre
    width = 0.115 / max(plane.squeeze, 0.6)
    brush.fill(plane, Rect(s - 0.06, t - 0.22, s + 0.06, t), rgb("b08868"), name)
    brush.fill(plane, Ellipse(s, t, width, 0.14), brush.pick(SKIN), name)
    brush.fill(plane, Ellipse(s, t + 0.06, width * 1.05, 0.1), hair, name)
