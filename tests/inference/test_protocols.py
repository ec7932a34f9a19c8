"""Inference protocols: names, descriptions, and what of an image is predicted and scored."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from pinmem_core.errors import CheckpointError, ConfigError
from pinmem_core.inference import PROTOCOLS, Protocol, get_protocol, protocol_of
from pinmem_core.inference.protocols import name_of

WHOLE = "whole image, scale 1"
LARGEST = "whole image, or the largest windows that fit into memory (overlap 1/8), scale 1"
WINDOWS = "sliding 512x512 (stride 341), scale 1, no flip, mean of logits"
DESCRIPTIONS = {
    "fast": f"{LARGEST}, no flip, mean of logits",
    "photo": f"{LARGEST}, no flip, mean of logits, larger images shrunk to a longer side of 640",
    "paper-train": f"{WHOLE}, no flip, mean of logits",
    "paper-mapillary": f"{WHOLE}, no flip, mean of logits; of an image 1536 high, its centre "
    "1536x1536, padding scored as road",
    "paper-eval": "sliding 768x768 (stride 512), scale 1, with flip, mean of logits, "
    "windows counted as the original does",
    "paper-pool": f"{WHOLE}, with flip, mean of probabilities",
    "rein-cityscapes": "sliding 1024x1024 (stride 682), scale 0.5 (bilinear), no flip, "
    "mean of logits",
    "rein-mapillary": f"{WINDOWS}; images and labels at half their size",
    "soma": WINDOWS,
}


def test_protocols_describe_themselves():
    assert {name: known.describe() for name, known in PROTOCOLS.items()} == DESCRIPTIONS
    assert PROTOCOLS["paper-pool"].resample == "bicubic"
    several = Protocol(scales=(0.75, 1), resample="bicubic").describe()
    assert several == "whole image, scale 0.75, 1 (bicubic), no flip, mean of logits"
    rein = {PROTOCOLS[name].overlap for name in ("rein-cityscapes", "rein-mapillary", "soma")}
    assert rein == {171 / 512}
    third = Protocol(crop="largest", overlap=0.3333).describe()
    assert "overlap 1/3)" in third


def test_a_protocol_with_changes_is_named_by_its_description():
    assert [name_of(protocol) for protocol in PROTOCOLS.values()] == list(PROTOCOLS)
    changed = get_protocol("soma+flip")
    assert name_of(changed) == changed.describe() == DESCRIPTIONS["soma"].replace("no", "with")
    with pytest.raises(FrozenInstanceError):
        changed.flip = False


def test_images_are_scaled_by_the_scales_and_shrunk_to_the_longest_side():
    assert Protocol(scales=(0.5, 2)).scales_of(4000, 3000) == (0.5, 2)
    shrinking = Protocol(scales=(0.5, 2), longest=640)
    assert shrinking.scales_of(320, 1280) == shrinking.scales_of(1280, 320) == (0.25, 1)
    assert shrinking.scales_of(640, 480) == shrinking.scales_of(64, 48) == (0.5, 2)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("paper-train", Protocol()),
        ("paper-train+flip", Protocol(flip=True)),
        ("paper-pool+scales=0.5,1,2+flip=false",
         Protocol(scales=(0.5, 1, 2), fuse="probabilities", resample="bicubic")),
        ("fast+crop=512+overlap=0.5", Protocol(crop=512, overlap=0.5)),
        ("photo+longest=none+crop=none", Protocol(overlap=1 / 8)),
        ("paper-train+scales=0.75", Protocol(scales=(0.75,))),
        ("fast+scales=0.01,16+crop=1+longest=1", Protocol(1, 1 / 8, (0.01, 16), 1)),
        ("fast+overlap=0", Protocol("largest", 0)),
    ],
)  # fmt: skip
def test_a_protocol_is_named_with_changes(text, meant):
    assert get_protocol(text) == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("paper-trian", "Did you mean 'paper-train'"),
        ("fast+flop", "Did you mean 'flip'"),
        ("fast+", "unknown field"),
        ("fast+crop=0", "crop: input should be greater than or equal to 1"),
        ("fast+scales=", "scales: input should be a valid number"),
        ("fast+scales=1,0", "scales: input should be greater than 0"),
        ("fast+scales=16.1", "scales: input should be less than or equal to 16"),
        ("fast+overlap=1", "overlap: input should be less than 1"),
        ("fast+overlap=-0.1", "overlap: input should be greater than or equal to 0"),
        ("fast+fuse=votes", "'logits' or 'probabilities'"),
    ],
)
def test_what_is_wrong_in_a_protocol_is_told(text, said):
    with pytest.raises(ConfigError) as caught:
        get_protocol(text)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_a_field_that_is_no_switch_needs_a_value():
    with pytest.raises(ConfigError) as caught:
        get_protocol("fast+crop")
    assert caught.value.message == "a protocol's 'crop' needs a value."
    assert caught.value.hint == "Write crop=VALUE."


def test_the_originals_view_of_mapillary_is_a_square_padded_with_road():
    protocol = PROTOCOLS["paper-mapillary"]
    label = np.repeat(np.arange(4, dtype=np.uint8), 250)[None].repeat(768, axis=0)
    image = np.stack([label * 50] * 3, axis=2)
    seen, truth = protocol.view_of(image, label)
    assert seen.shape == (1536, 1536, 3) and truth.shape == (1536, 1536)
    assert np.array_equal(np.flatnonzero(np.diff(truth[0])), [267, 767, 1267])
    assert seen[700, 500].tolist() == [50, 50, 50]

    seen, truth = protocol.view_of(image[:, 375:567], label[:, 375:567])
    assert (truth[:, :576] == 0).all() and (truth[:, 960:] == 0).all()
    assert (truth[:, 576:960] > 0).all() and not seen[:, :570].any()
    _, truth = protocol.view_of(image[:, -1:].repeat(3, axis=0), label[:, -1:].repeat(3, axis=0))
    assert np.flatnonzero(truth[0]).tolist() == [767]


def test_other_views_are_half_the_image_or_the_image_itself():
    halved = PROTOCOLS["rein-mapillary"]
    label = np.repeat(np.arange(4, dtype=np.uint8), 250)[None].repeat(768, axis=0)
    image = np.stack([label * 50] * 3, axis=2)
    seen, truth = halved.view_of(image, label)
    assert seen.shape == (384, 500, 3) and np.array_equal(truth, label[::2, ::2])
    point = halved.view_of(image[:1, :1], label[:1, :1])
    assert (point[0].shape, point[1].shape) == ((1, 1, 3), (1, 1))
    native = PROTOCOLS["paper-train"].view_of(image, label)
    assert native[0] is image and native[1] is label


@pytest.mark.parametrize("name", ["evil", 3, None, "fast+crop=-1"])
def test_a_checkpoint_that_asks_for_no_protocol_of_ours_is_refused(name):
    with pytest.raises(CheckpointError, match="asks for the protocol"):
        protocol_of({"protocol": name}, "fast")
    assert protocol_of({}, "fast") == "fast"
    assert protocol_of({"protocol": "photo+flip"}, "fast") == "photo+flip"
