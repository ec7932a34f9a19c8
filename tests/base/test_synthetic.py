"""The synthetic scene scenes: reproducible, complete in classes, and different by domain."""

import numpy as np
import pytest

from pinmem_core.label_space import CITYSCAPES, IGNORE_INDEX
from pinmem_core.synthetic import DOMAINS, Scene, draw_scene
from pinmem_core.synthetic.lens import blur, compress
from pinmem_core.synthetic.projection import Camera, Floor, Front, Side
from pinmem_core.synthetic.shapes import (
    Ellipse,
    Lattice,
    Polygon,
    Rect,
    Shape,
    line,
    regular,
    sweep,
)

SAMPLES = 16


@pytest.fixture(scope="module")
def albums() -> dict[str, list[Scene]]:
    return {d: [draw_scene(d, i, size=(160, 80)) for i in range(SAMPLES)] for d in DOMAINS}


@pytest.mark.parametrize("domain", DOMAINS)
def test_equal_arguments_give_equal_bits(domain: str) -> None:
    np.random.seed(1)
    expected = np.random.rand(3)
    first = draw_scene(domain, 3)
    np.random.seed(1)
    second = draw_scene(domain, 3)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.label, second.label)
    assert np.array_equal(np.random.rand(3), expected)


def test_index_seed_and_domain_change_the_picture() -> None:
    base = draw_scene("arcade", 0).image
    for other in (
        draw_scene("arcade", 1),
        draw_scene("arcade", 0, seed=1),
        draw_scene("toytown", 0),
    ):
        assert not np.array_equal(base, other.image)


@pytest.mark.parametrize("size", [(256, 128), (97, 61), (64, 64), (40, 90), (17, 9), (512, 256)])
@pytest.mark.parametrize("domain", DOMAINS)
def test_any_size(domain: str, size: tuple[int, int]) -> None:
    image, label = draw_scene(domain, 0, size=size)
    assert image.shape == (size[1], size[0], 3)
    assert label.shape == (size[1], size[0])
    assert image.dtype == label.dtype == np.uint8
    assert image.flags.c_contiguous
    assert label.flags.c_contiguous
    assert set(np.unique(label)) <= {*range(len(CITYSCAPES)), IGNORE_INDEX}


def test_the_same_scene_at_twice_the_size() -> None:
    small = draw_scene("toytown", 5, size=(128, 64)).label
    large = draw_scene("toytown", 5, size=(256, 128)).label[::2, ::2]
    assert (small == large).mean() > 0.9


def test_unknown_domain() -> None:
    with pytest.raises(KeyError):
        draw_scene("moon", 0)


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_occurs_in_every_domain(domain: str, albums: dict[str, list[Scene]]) -> None:
    counts = np.stack([np.bincount(s.label.ravel(), minlength=256) for s in albums[domain]])
    images_with = (counts[:, : len(CITYSCAPES)] >= 12).sum(axis=0)
    missing = [n for n, k in zip(CITYSCAPES.names, images_with, strict=True) if k < 2]
    assert not missing
    assert counts[:, IGNORE_INDEX].sum() / counts.sum() < 0.05


@pytest.mark.slow
def test_rider_sits_on_something() -> None:
    two_wheelers = CITYSCAPES.train_ids["bicycle"], CITYSCAPES.train_ids["motorcycle"]
    seen = 0
    for i in range(12):
        label = draw_scene("toytown", i).label
        riders = label == CITYSCAPES.train_ids["rider"]
        if riders.sum() > 80:
            seen += 1
            assert np.isin(label, two_wheelers).any()
    assert seen > 2


@pytest.mark.slow
def test_layout_is_shared_but_colours_are_not(albums: dict[str, list[Scene]]) -> None:
    """Roads lie low and sky lies high everywhere, under clearly different colours."""
    means = {}
    for domain, album in albums.items():
        labels = np.stack([s.label for s in album])
        rows = np.broadcast_to(np.arange(labels.shape[1])[:, None], labels.shape)
        middle = {n: rows[labels == CITYSCAPES.train_ids[n]].mean() for n in ("sky", "car", "road")}
        assert middle["sky"] < middle["car"] < middle["road"]
        images = np.stack([s.image for s in album]).astype(float)
        means[domain] = np.array(
            [images[labels == CITYSCAPES.train_ids[n]].mean(0) for n in ("road", "building", "sky")]
        )
    for a in DOMAINS:
        for b in DOMAINS:
            if a < b:
                assert np.abs(means[a] - means[b]).max() > 20, (a, b)


def test_titles() -> None:
    assert len({style.title for style in DOMAINS.values()}) == len(DOMAINS) >= 5


@pytest.mark.parametrize(
    ("plane", "point"),
    [
        (Front(8.0, 1.0), (1.5, 0.7, 8.0)),
        (Side(-3.0, 5.0), (-3.0, 0.7, 7.0)),
        (Floor(), (1.0, 0.0, 7.0)),
    ],
)
def test_planes_invert_the_projection(
    plane: Front | Side | Floor, point: tuple[float, float, float]
) -> None:
    camera = Camera(400, 200, focal=300.0, u0=210.0, v0=90.0, eye=1.5)
    x, y, z = point
    u, v = camera.column(x, z), camera.row(y, z)
    pixel = slice(int(v), int(v) + 1), slice(int(u), int(u) + 1)
    s, t, depth = (a.ravel()[0] for a in plane.local(camera, pixel))
    expected = {Front: (x - 1.0, y), Side: (z - 5.0, y), Floor: (x, z)}[type(plane)]
    assert (s, t) == pytest.approx(expected, abs=0.2)
    assert depth == pytest.approx(z, abs=0.2)


@pytest.mark.parametrize(
    "shape",
    [
        Rect(-1, 0, 2, 1.5),
        Ellipse(0.5, 1, 1.2, 0.7),
        Ellipse(0.5, 1, 1.2, 0.7, rough=0.3),
        Polygon([(0, 0), (2, 0), (1, 1)]),
        Polygon([(0, 0), (1, 1), (2, 0)]),
        Lattice((0, 0, 2, 2), (0.5, 0.5), (0.5, 0.5)),
        Lattice((0, 0, 2, 2), (0.25, 0.25), (1.0, 1.0), keep=0.5),
        line((0, 0), (1, 2), 0.3),
        regular(0, 0, 1, 8),
        sweep((0, 0, 1, 0.5), (-1, 1)),
    ],
)
def test_shapes_fill_their_bounds_only(shape: Shape) -> None:
    axis = np.linspace(-3, 3, 301, dtype=np.float32)
    s, t = axis[None, :], axis[:, None]
    inside = np.broadcast_to(shape.inside(s, t), (301, 301))
    s0, t0, s1, t1 = shape.bounds
    box = (s >= s0 - 1e-5) & (s <= s1 + 1e-5) & (t >= t0 - 1e-5) & (t <= t1 + 1e-5)
    assert not (inside & ~box).any()
    assert inside.sum() > 0.15 * box.sum()


def test_blur_keeps_the_mean_and_compression_stays_close() -> None:
    image = np.random.default_rng(0).random((3, 40, 56), dtype=np.float32)
    flat = np.full_like(image, 0.4)
    assert np.allclose(blur(flat, 1.7), flat, atol=1e-5)
    assert blur(image, 2.0).std() < 0.5 * image.std()
    assert np.allclose(compress(flat, 0.01), flat, atol=0.02)
    smooth = blur(blur(image, 3.0), 3.0)
    assert np.abs(compress(smooth, 0.01) - smooth).max() < 0.1
