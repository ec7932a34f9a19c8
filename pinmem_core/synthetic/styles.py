"""The domains, as data: what a town is built of, how it is lit and how it is filmed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Span = tuple[float, float]  # uniform range
Swatch = tuple[str, ...]  # hex RGB; a colour is drawn between two of them


@dataclass(frozen=True)
class Palette:
    """Paint of every surface, before light."""

    road: Swatch
    marking: Swatch
    walk: Swatch
    kerb: Swatch
    grass: Swatch
    leaves: Swatch
    trunk: Swatch
    facade: Swatch
    roof: Swatch
    glass: Swatch
    wall: Swatch
    fence: Swatch
    pole: Swatch
    lamp_box: Swatch
    cars: Swatch
    coaches: Swatch
    clothes: Swatch
    grain: float = 0.3  # strength of surface texture
    jitter: float = 0.03  # spread of a colour from thing to thing


@dataclass(frozen=True)
class Town:
    """What is built and who is about; probabilities, and counts as ranges."""

    lanes: tuple[int, int]
    walk: Span
    storeys: tuple[int, int]
    roofs: Mapping[str, float]  # flat, gable or stepped -> weight
    verge: float = 0.4
    setback: float = 0.45
    crossing: float = 0.5
    mast: float = 0.3  # traffic lights hang over the road
    cars: Span = (3, 7)
    parking: float = 0.5  # parked cars line a kerb
    parked: Span = (3, 8)
    people: Span = (4, 9)
    trees: Span = (3, 8)
    crowns: Mapping[str, float] = field(default_factory=lambda: {"round": 0.8, "cone": 0.2})


@dataclass(frozen=True)
class Light:
    """Sky and sun.

    ``elevation`` is the sun's height in degrees, ``shadow`` the darkness of cast shadows in
    [0, 1], ``windows`` the share of lit windows and ``lamps`` whether lamps and headlights burn.
    """

    zenith: Swatch
    horizon: Swatch
    clouds: float
    ambient: str
    sun: str
    elevation: Span
    shadow: float
    windows: float = 0.0
    lamps: bool = False


@dataclass(frozen=True)
class Weather:
    """Air and water: fog per metre, and the amounts of rain, of drops and of wetness."""

    fog: Span = (0.0005, 0.002)
    fog_colour: Swatch = ("c4ccd6",)
    rain: float = 0.0
    drops: int = 0
    wet: float = 0.0


@dataclass(frozen=True)
class Lens:
    """Camera pose and image chain; blur is in pixels of a frame 128 high."""

    eye: Span
    horizon: Span
    focal: Span  # in frame widths
    blur: float = 0.0
    bloom: float = 0.0
    vignette: float = 0.0
    exposure: Span = (0.95, 1.05)
    balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 1.0
    saturation: float = 1.0
    noise: float = 0.0
    jpeg: float = 0.0  # quantisation step; 0 is lossless
    bonnet: float = 0.0  # probability that the own car shows


@dataclass(frozen=True)
class Style:
    """One domain."""

    title: str
    palette: Palette
    town: Town
    light: Light
    lens: Lens
    weather: Weather = field(default_factory=Weather)


_ARCADE = Style(
    title="Glossy video game of a wide American boulevard under hard sun.",
    palette=Palette(
        road=("4b4e58", "5d5f66", "6a665f"),
        marking=("f2ecd8", "f0c23a"),
        walk=("b3aca0", "c4b49a", "a39f9c"),
        kerb=("cfc9bb",),
        grass=("5f8f2a", "8a9a3c", "48782c"),
        leaves=("2f7a22", "4f8f26", "1f5a2a", "77a02c"),
        trunk=("6b4a2c", "7d6244"),
        facade=("c99a6a", "d8c9a8", "7f94ad", "a8543c", "5a6f8c", "e2d8c6", "b8775a"),
        roof=("7a6a5c", "8f4a38"),
        glass=("1f3a5c", "3f6f9c", "2a4a52"),
        wall=("c8a888", "a89a8c", "98583c"),
        fence=("2a2c30", "5a4632", "8a8d90"),
        pole=("4a4f52", "6f6a5e", "2f3a38"),
        lamp_box=("e0a81c", "23262a"),
        cars=("c81e1e", "1c46b4", "f0f0ea", "16181c", "e8a812", "2c8c4a", "8c929a", "d85a14"),
        coaches=("d8d8d8", "c83a28", "2858a8", "e8b020", "3a7a5a"),
        clothes=("d83a3a", "2a4aa0", "f0e8dc", "22242c", "e8c030", "3a9a6a", "c860a0", "6a6f7a"),
        grain=0.35,
    ),
    town=Town(
        lanes=(4, 6),
        walk=(2.5, 4.5),
        storeys=(3, 18),
        roofs={"flat": 1.0},
        setback=0.6,
        mast=0.8,
        cars=(3, 8),
        parking=0.35,
        people=(4, 9),
    ),
    light=Light(
        zenith=("2a68c8", "3f86dc"),
        horizon=("a8d0f0", "d8e4ea"),
        clouds=0.35,
        ambient="707890",
        sun="b4a488",
        elevation=(38, 65),
        shadow=0.5,
    ),
    lens=Lens(
        eye=(1.3, 1.9),
        horizon=(0.40, 0.50),
        focal=(0.62, 0.85),
        bloom=0.15,
        contrast=1.12,
        saturation=1.2,
        noise=0.004,
    ),
)

_TOYTOWN = Style(
    title="Clean computer-aided drawing of a small European town with coloured gables.",
    palette=Palette(
        road=("77757f", "868389", "6c6a72"),
        marking=("ffffff",),
        walk=("a8786c", "b89a8c", "9c949c"),
        kerb=("d8d4d0",),
        grass=("5cb84a", "74c25a"),
        leaves=("3c9c3c", "5cac48", "2c8454", "b0a038"),
        trunk=("8a5c38",),
        facade=("e8c468", "e09078", "9cc4d8", "f0e8d8", "b8d49c", "d8a4b4", "c86c58"),
        roof=("b4503c", "8c4038", "5c5c70"),
        glass=("a4d0e8", "6c8ca8", "4c5c74"),
        wall=("c4bcb0", "b07860", "d8ccb4"),
        fence=("7c5434", "f0f0f0", "3c6c44"),
        pole=("a0a4a8", "74787c"),
        lamp_box=("2c2c30", "3c4c3c"),
        cars=("e04848", "4878d0", "f4f4f4", "38383c", "f0cc40", "68b468", "a8a8b0", "98c8d8"),
        coaches=("f0d050", "e06048", "58a0d0", "f0f0f0", "60a878"),
        clothes=("e05858", "5070c0", "f4f0e8", "404048", "e8c860", "58a878", "b878b8", "a08060"),
        grain=0.0,
        jitter=0.015,
    ),
    town=Town(
        lanes=(2, 3),
        walk=(2.5, 4.5),
        storeys=(2, 4),
        roofs={"gable": 0.6, "stepped": 0.25, "flat": 0.15},
        setback=0.4,
        mast=0.0,
        cars=(2, 5),
        people=(9, 18),
        crowns={"round": 0.5, "cone": 0.5},
    ),
    light=Light(
        zenith=("74b4e8", "90c4ec"),
        horizon=("c8e4f4", "e8f0f4"),
        clouds=0.0,
        ambient="a8a8b0",
        sun="686460",
        elevation=(50, 70),
        shadow=0.22,
    ),
    lens=Lens(eye=(2.2, 3.4), horizon=(0.28, 0.40), focal=(0.68, 0.95)),
    weather=Weather(fog=(0.0, 0.0005)),
)

_CITYDAY = Style(
    title="Dashcam in a grey European city on an overcast day.",
    palette=Palette(
        road=("6c6c6a", "7c7a76", "5c5d60", "88847c"),
        marking=("c8c8c0",),
        walk=("84807a", "96928c", "78706a", "6c6c6e"),
        kerb=("a4a29c", "8c8a86"),
        grass=("5c6440", "6e6c48", "4c5a3a"),
        leaves=("3a4630", "4c5a38", "5e6244", "2c3828"),
        trunk=("4a423a", "5a5248"),
        facade=("a89c88", "8c8478", "b8b0a0", "78706c", "9a7a68", "6c747c", "c4beb4"),
        roof=("5c4640", "4a4a4c", "6e5a50"),
        glass=("2c3236", "4c545a", "788088"),
        wall=("8c8880", "6e6a64", "7a6458"),
        fence=("3c4442", "5c5248", "7c8080"),
        pole=("6c7070", "54585a", "848684"),
        lamp_box=("2a2c2c", "3a3c38"),
        cars=("1e2022", "8c9092", "c8cac8", "34445c", "5c2428", "54585c", "2c3430", "a09c94"),
        coaches=("c4c4bc", "8c3430", "4c6478", "b09c50", "74787a"),
        clothes=("24262c", "3c4450", "5c5450", "7c2c30", "94908a", "34484c", "6c6450", "c0bcb4"),
        grain=0.6,
        jitter=0.05,
    ),
    town=Town(
        lanes=(2, 4),
        walk=(2.0, 5.0),
        storeys=(3, 6),
        roofs={"flat": 0.6, "gable": 0.3, "stepped": 0.1},
        parking=0.6,
    ),
    light=Light(
        zenith=("c4c8cc", "dce0e0", "b0b8c0"),
        horizon=("e0e2e0", "f0f0ec"),
        clouds=0.5,
        ambient="dcdee0",
        sun="2c2a28",
        elevation=(35, 60),
        shadow=0.1,
    ),
    lens=Lens(
        eye=(1.2, 1.5),
        horizon=(0.40, 0.48),
        focal=(0.8, 1.1),
        blur=0.6,
        bloom=0.1,
        vignette=0.35,
        exposure=(0.9, 1.2),
        balance=(0.97, 1.02, 0.98),
        contrast=0.9,
        saturation=0.85,
        noise=0.016,
        jpeg=0.03,
        bonnet=0.5,
    ),
    weather=Weather(fog=(0.001, 0.004), fog_colour=("c8ccce",)),
)

_DUSK = Style(
    title="Dashcam at blue hour: low sun, lit windows, headlights and a noisy sensor.",
    palette=Palette(
        road=("6c6a6e", "58565c", "7c746c"),
        marking=("d8d0c0",),
        walk=("948a80", "7c7674", "a4988c"),
        kerb=("a8a09a",),
        grass=("66703c", "4c5a34"),
        leaves=("3c4c2c", "5c5a30", "2c4030", "7a5c30"),
        trunk=("4a3c30",),
        facade=("a88c78", "8c8088", "c4a890", "746c78", "a06c58", "5c647c"),
        roof=("4c4048", "6c4840"),
        glass=("303848", "586078"),
        wall=("8c8078", "6c6468", "9c7860"),
        fence=("34343a", "544840", "787478"),
        pole=("545058", "6c6864", "34343c"),
        lamp_box=("26262a", "c8a030"),
        cars=("a8a8ac", "26262c", "6c2428", "2c3c64", "d0ccc4", "585a60", "8c7040"),
        coaches=("c8c0b0", "a83c30", "3c5c8c", "d0a840"),
        clothes=("2c2a34", "6c3038", "48546c", "8c8078", "3c4c40", "b0a490"),
        grain=0.5,
        jitter=0.04,
    ),
    town=Town(
        lanes=(2, 5),
        walk=(2.0, 4.5),
        storeys=(3, 9),
        roofs={"flat": 0.75, "gable": 0.25},
    ),
    light=Light(
        zenith=("2c3c78", "4a4a84", "24345c"),
        horizon=("f09858", "e87c6c", "c898a0", "f0b878"),
        clouds=0.5,
        ambient="74749c",
        sun="b87850",
        elevation=(9, 20),
        shadow=0.45,
        windows=0.35,
        lamps=True,
    ),
    lens=Lens(
        eye=(1.2, 1.7),
        horizon=(0.38, 0.50),
        focal=(0.7, 1.0),
        blur=0.5,
        bloom=0.5,
        vignette=0.45,
        exposure=(0.95, 1.3),
        balance=(1.08, 0.97, 1.0),
        contrast=1.05,
        noise=0.03,
        jpeg=0.03,
        bonnet=0.3,
    ),
    weather=Weather(fog=(0.002, 0.006), fog_colour=("b08c90", "8c7c98")),
)

_FOGRAIN = Style(
    title="Dashcam behind a wet windscreen: fog, rain and a mirroring road.",
    palette=Palette(
        road=("4c5052", "5c5e5e", "44484c"),
        marking=("b4b8b4",),
        walk=("6c6c68", "7c7872", "5c5c5c"),
        kerb=("848480",),
        grass=("4c5c3c", "5c6444"),
        leaves=("34442e", "46543a", "545c46"),
        trunk=("3c3630",),
        facade=("9c9488", "847c74", "a8a498", "8c6c5c", "6c7478", "b8a888"),
        roof=("5c4a44", "48484c"),
        glass=("343c40", "545c60"),
        wall=("78746c", "64605c", "84705f"),
        fence=("343c3a", "54504a", "747878"),
        pole=("505456", "686c6c"),
        lamp_box=("242828", "343830"),
        cars=("2c3034", "8c9094", "bcc0c0", "5c2c30", "344860", "4c5450", "94783c"),
        coaches=("b8b8b0", "8c3c34", "48647c", "ac9848"),
        clothes=("2c3036", "44505c", "7c3438", "8c8c84", "b09838", "3c4c48"),
        grain=0.5,
        jitter=0.04,
    ),
    town=Town(
        lanes=(2, 4),
        walk=(2.0, 4.5),
        storeys=(2, 6),
        roofs={"flat": 0.5, "gable": 0.4, "stepped": 0.1},
        people=(5, 10),
    ),
    light=Light(
        zenith=("a0a8ac", "b4b8b8"),
        horizon=("c0c4c4", "b4bcc0"),
        clouds=0.2,
        ambient="ccd2d6",
        sun="14161a",
        elevation=(40, 60),
        shadow=0.05,
        windows=0.1,
        lamps=True,
    ),
    lens=Lens(
        eye=(1.2, 1.7),
        horizon=(0.38, 0.48),
        focal=(0.72, 1.0),
        blur=0.6,
        bloom=0.3,
        vignette=0.25,
        exposure=(0.9, 1.15),
        balance=(0.96, 1.0, 1.03),
        contrast=0.9,
        saturation=0.85,
        noise=0.02,
        jpeg=0.03,
        bonnet=0.4,
    ),
    weather=Weather(
        fog=(0.015, 0.045),
        fog_colour=("c4cacc", "b4bcc0", "d0d2d0"),
        rain=1.0,
        drops=14,
        wet=0.55,
    ),
)

DOMAINS: Mapping[str, Style] = MappingProxyType(
    {
        "arcade": _ARCADE,
        "toytown": _TOYTOWN,
        "cityday": _CITYDAY,
        "dusk": _DUSK,
        "fograin": _FOGRAIN,
    }
)
