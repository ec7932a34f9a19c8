"""Plan a street: the positions of all objects in metres."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pinmem_core.synthetic.styles import Town

LANE = 3.2
END = 130.0  # where the street fades into the backdrop


class Heading(Enum):
    """Direction of an object relative to the camera."""

    AWAY = "away"
    TOWARD = "toward"
    LEFT = "left"
    RIGHT = "right"


class Thing(NamedTuple):
    """An object of a scene; ``kind`` selects its drawing function.

    ``x`` is its middle (for buildings, walls and fences: the face towards the street), ``z`` its
    nearest depth and ``length`` its extent in depth.
    """

    kind: str
    x: float
    z: float
    length: float = 0.0
    heading: Heading = Heading.AWAY

    @property
    def side(self) -> int:
        """-1 on the left of the camera, 1 on the right."""
        return 1 if self.x > 0 else -1


@dataclass(frozen=True)
class Kerbside:
    """Cross-section of one side: distances of strips' outer edges from the camera axis."""

    side: int
    kerb: float
    verge: float
    walk: float
    parking: bool


class Street(NamedTuple):
    """A planned street: lanes, kerbsides, cross street and objects."""

    lanes: tuple[float, ...]  # lane edges, left to right
    centre: float  # line between the directions
    sides: tuple[Kerbside, Kerbside]
    crossing: tuple[float, float] | None
    rails: float | None  # middle of a tram track
    things: tuple[Thing, ...]


def plan_street(rng: np.random.Generator, town: Town) -> Street:
    """Sample a random street of a town."""
    count = int(rng.integers(town.lanes[0], town.lanes[1] + 1))
    own = int(rng.integers(count // 2, count))  # right-hand traffic
    left = -(own + 0.5) * LANE + rng.uniform(-0.5, 0.5)
    lanes = tuple(left + LANE * i for i in range(count + 1))
    centre = lanes[count // 2]
    sides = _kerbside(rng, town, -1, -lanes[0]), _kerbside(rng, town, 1, lanes[-1])
    crossing = None
    if rng.random() < town.crossing:
        start = rng.uniform(13, 34)
        crossing = start, start + rng.uniform(8, 13)
    rails = lanes[0] + LANE / 2 if rng.random() < 0.48 else None
    things = [
        *_traffic(rng, town, lanes, centre, crossing, rails),
        *_junction(rng, town, sides, crossing),
    ]
    for kerbside in sides:
        things += _frontage(rng, town, kerbside, crossing)
        things += _furniture(rng, town, kerbside, crossing)
        things += _pavement(rng, town, kerbside)
    return Street(lanes, centre, sides, crossing, rails, tuple(things))


def _kerbside(rng: np.random.Generator, town: Town, side: int, kerb: float) -> Kerbside:
    parking = bool(rng.random() < town.parking)
    kerb += rng.uniform(1.9, 2.4) if parking else rng.uniform(0.2, 0.6)
    verge = kerb + (rng.uniform(1.0, 2.4) if rng.random() < town.verge else 0.0)
    return Kerbside(side, kerb, verge, verge + rng.uniform(*town.walk), parking)


def _clear(z: float, crossing: tuple[float, float] | None, margin: float = 1.0) -> bool:
    return crossing is None or not crossing[0] - margin < z < crossing[1] + margin


def _traffic(
    rng: np.random.Generator,
    town: Town,
    lanes: tuple[float, ...],
    centre: float,
    crossing: tuple[float, float] | None,
    rails: float | None,
) -> Iterator[Thing]:
    middles = [(a + b) / 2 for a, b in pairwise(lanes)]
    # The own lane stays free close ahead.
    front = {x: rng.uniform(9, 20) if abs(x) < LANE / 2 else rng.uniform(5, 16) for x in middles}
    if rails is not None and rng.random() < 0.85:
        length = rng.uniform(16, 28)
        start = rng.uniform(7, 20)
        yield Thing("train", rails, start, length, Heading.TOWARD)
        front[rails] = start + length + 4
    kinds = ["truck"] * (rng.random() < 0.45) + ["bus"] * (rng.random() < 0.45)
    kinds += ["motorbike"] * (rng.random() < 0.4) + ["cyclist"] * (rng.random() < 0.35)
    kinds += ["car"] * int(rng.integers(int(town.cars[0]), int(town.cars[1]) + 1))
    lengths = {"truck": (6.5, 9.5), "bus": (9, 12), "car": (3.9, 4.8)}
    for kind in kinds:
        x = middles[int(rng.integers(len(middles)))]
        length = rng.uniform(*lengths.get(kind, (1.9, 1.9)))
        if kind in ("truck", "bus"):
            front[x] = max(front[x], rng.uniform(9, 16))
        heading = Heading.TOWARD if x < centre else Heading.AWAY
        if front[x] < 70:
            yield Thing(kind, x + rng.uniform(-0.3, 0.3), front[x], length, heading)
        front[x] += length + rng.uniform(3, 14)
    if crossing is not None and rng.random() < 0.6:
        heading = Heading.LEFT if rng.random() < 0.5 else Heading.RIGHT
        kind = str(rng.choice(["car", "cyclist", "motorbike"], p=[0.5, 0.3, 0.2]))
        yield Thing(kind, rng.uniform(-9, 9), crossing[0] + 3, 1.8, heading)


def _junction(
    rng: np.random.Generator,
    town: Town,
    sides: tuple[Kerbside, Kerbside],
    crossing: tuple[float, float] | None,
) -> Iterator[Thing]:
    """Traffic lights and people crossing, at the cross street or a zebra crossing."""
    stop = crossing[0] - 1.5 if crossing else rng.uniform(8, 18)
    if crossing or rng.random() < 0.6:
        for kerbside in sides:
            if rng.random() < 0.85:
                kind = "mast" if rng.random() < town.mast and kerbside.side > 0 else "signal"
                yield Thing(kind, kerbside.side * (kerbside.kerb + 0.5), stop)
    for _ in range(int(rng.integers(0, 4))):
        x = rng.uniform(-sides[0].kerb, sides[1].kerb)
        yield Thing("person", x, stop - rng.uniform(0, 1.5), 0, _across(rng))


def _frontage(
    rng: np.random.Generator,
    town: Town,
    side: Kerbside,
    crossing: tuple[float, float] | None,
) -> Iterator[Thing]:
    """Buildings, or gardens behind walls, fences and hedges, from here to the far end."""
    z = rng.uniform(-8, 2)
    while z < END:
        length = float(rng.uniform(7, 18))
        stop = z + length
        if crossing and z < crossing[1] and stop > crossing[0]:
            if crossing[0] - z > 4:
                yield Thing("building", side.side * side.walk, z, crossing[0] - 2 - z)
            z = crossing[1] + 2
            continue
        if rng.random() < town.setback:
            edge = side.side * (side.walk + 0.1)
            border = rng.choice(["wall", "fence", "hedge", "none"], p=[0.36, 0.42, 0.1, 0.12])
            if border != "none":
                yield Thing(str(border), edge, z, length)
            depth = rng.uniform(4, 9)
            if rng.random() < 0.6:
                yield Thing("building", side.side * (side.walk + depth), z, length)
            else:
                yield Thing("hedge", side.side * (side.walk + depth + 3), z, length)
            for _ in range(int(rng.integers(0, 3))):
                x = side.side * (side.walk + rng.uniform(1.5, depth))
                yield Thing(str(rng.choice(["tree", "bush"])), x, rng.uniform(z, stop))
        else:
            yield Thing("building", side.side * side.walk, z, length)
        z = stop


def _furniture(
    rng: np.random.Generator,
    town: Town,
    side: Kerbside,
    crossing: tuple[float, float] | None,
) -> Iterator[Thing]:
    """Trees, lamps, signs and parked vehicles along the kerb."""
    edge = side.side * (side.kerb + 0.6)
    for _ in range(int(rng.integers(int(town.trees[0]), int(town.trees[1]) + 1)) // 2):
        z = rng.uniform(6, 60)
        if _clear(z, crossing):
            yield Thing("tree", edge + side.side * rng.uniform(0, 0.5), z)
    start, pitch = rng.uniform(5, 20), rng.uniform(16, 26)
    for i in range(3):
        if _clear(start + pitch * i, crossing):
            yield Thing("lamp", edge, start + pitch * i)
    for _ in range(int(rng.integers(1, 4))):
        yield Thing("sign", edge + side.side * rng.uniform(-0.1, 0.5), rng.uniform(6, 26))
    if not side.parking:
        return
    z, heading = rng.uniform(3, 14), Heading.TOWARD if side.side < 0 else Heading.AWAY
    for _ in range(int(rng.integers(int(town.parked[0]), int(town.parked[1]) + 1)) // 2):
        kind = str(rng.choice(["car", "truck", "motorcycle"], p=[0.78, 0.07, 0.15]))
        length = {"car": 4.4, "truck": 6.5}.get(kind, 1.9)
        if _clear(z, crossing, 6):
            yield Thing(kind, side.side * (side.kerb - 1.0), z, length, heading)
        z += length + rng.uniform(0.8, 9)


def _pavement(rng: np.random.Generator, town: Town, side: Kerbside) -> Iterator[Thing]:
    """People on foot, and bicycles and motorcycles standing or riding by."""
    for _ in range(int(rng.integers(int(town.people[0]), int(town.people[1]) + 1)) // 2):
        z = 4 + 32 * rng.random() ** 1.6
        x = side.side * rng.uniform(side.verge + 0.4, side.walk - 0.4)
        yield Thing("person", x, z, 0, _across(rng))
        if rng.random() < 0.35:
            yield Thing("person", x + rng.uniform(-0.7, 0.7), z + 0.4, 0, _across(rng))
    if rng.random() < 0.45:
        x, z = side.side * (side.verge + 0.8), rng.uniform(6, 15)
        for i in range(int(rng.integers(1, 4))):
            yield Thing("bicycle", x, z + 0.7 * i, 0, _across(rng))
    if rng.random() < 0.22:
        x, z = side.side * (side.verge + 0.9), rng.uniform(6, 14)
        yield Thing("motorcycle", x, z, 0, _across(rng))
    if rng.random() < 0.35:
        kind = "cyclist" if rng.random() < 0.65 else "motorbike"
        yield Thing(kind, side.side * (side.kerb - 2.6), rng.uniform(6, 16), 1.9, _across(rng))


def _across(rng: np.random.Generator) -> Heading:
    return Heading.LEFT if rng.random() < 0.5 else Heading.RIGHT
