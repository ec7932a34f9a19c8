import numpy as np
import pytest

from pinmem_core.data.label_maps import LabelMap, LabelMapSpec, build_label_map
from pinmem_core.label_space import (
    CITYSCAPES,
    LabelSpace,
)
from pinmem_core.visualize import colorize, legend, overlay


def test_classes_are_those_of_cityscapes():
    assert [*CITYSCAPES.train_ids.values()] == list(range(19))
    assert CITYSCAPES.names[10] == "sky"
    assert (CITYSCAPES.classes["sky"], CITYSCAPES.label_ids[10]) == ((70, 130, 180), 23)
    assert len({*CITYSCAPES.classes.values()}) == len({*CITYSCAPES.label_ids}) == 19
    small, middle, large = (set(np.flatnonzero(CITYSCAPES.subsets[n])) for n in ("13", "16", "19"))
    assert [len(small), len(middle), len(large)] == [13, 16, 19] and small < middle < large


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_ids_are_looked_up_and_unknown_ones_reported(dtype):
    labels = LabelMap.from_ids({7: 0, 200: 18, 0: 255})
    train_ids, unknown = labels.apply(np.array([[7, 200], [0, 33]], dtype=dtype))
    assert train_ids.tolist() == [[0, 18], [255, 255]]
    assert unknown == (33,)


def test_16_bit_ids_do_not_wrap():
    labels = LabelMap.from_ids({1000: 3, 232: 5})
    assert labels.apply(np.array([[1000, 232]], dtype=np.uint16))[0].tolist() == [[3, 5]]


def test_colours_are_looked_up_and_the_channel_order_matters():
    labels = LabelMap.from_colors({(1, 2, 3): 4, (3, 2, 1): 6})
    train_ids, unknown = labels.apply(np.array([[(1, 2, 3), (3, 2, 1), (9, 9, 9)]], np.uint8))
    assert train_ids.tolist() == [[4, 6, 255]]
    assert unknown == (0x090909,)


def test_a_map_refuses_pictures_of_the_other_kind_and_values_that_are_no_train_ids():
    with pytest.raises(ValueError, match="single-channel"):
        LabelMap.from_ids({0: 0}).apply(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="not trainIds"):
        LabelMap.from_ids({0: 19})


def test_the_digest_tells_maps_apart():
    one, same = LabelMap.from_ids({1: 2, 3: 4}), LabelMap.from_ids({3: 4, 1: 2})
    assert one.digest == same.digest != LabelMap.from_ids({1: 2, 3: 5}).digest


def test_a_map_starts_from_another_and_its_corrections():
    maps = {"idd-level1": {"living thing": "person"}}
    one = LabelMapSpec(values={9: "x"}, classes={"person": 1, "rider": 2, "sky": 3}, maps=maps)
    specs = {
        "one": one,
        "same": LabelMapSpec(like="one", classes={"road": 3}),
        "level1": LabelMapSpec(like="one", space="idd-level1", classes={"sky": 4}),
        "other": LabelMapSpec(like="one", space="idd-26"),
    }
    same = build_label_map("same", specs)
    assert same.entries == {1: 11, 2: 12, 3: 0, 9: 255}
    assert same.space.maps["idd-level1"]["living thing"] == ("person",)
    assert build_label_map("level1", specs).entries == {1: 2, 2: 255, 3: 6, 4: 6, 9: 255}
    assert {*build_label_map("other", specs).entries.values()} == {255}


def test_painting():
    train_ids = np.array([[0, 255]], np.uint8)
    image = np.full((1, 2, 3), 100, np.uint8)
    assert colorize(train_ids, CITYSCAPES).tolist() == [[[128, 64, 128], [0, 0, 0]]]
    assert overlay(image, train_ids, CITYSCAPES).tolist() == [[[117, 78, 117], [100, 100, 100]]]
    assert CITYSCAPES.label_id_table[train_ids].tolist() == [[7, 0]]


def test_pictures_take_the_colours_and_names_of_their_label_space():
    space = LabelSpace(name="own", classes={"mud": (1, 2, 3), "grass": None})
    train_ids = np.array([[0, 1, 255]], np.uint8)
    image = np.full((1, 3, 3), 100, np.uint8)
    assert colorize(train_ids, space).tolist() == [[[1, 2, 3], [0, 128, 0], [0, 0, 0]]]
    assert overlay(image, train_ids, space)[0].tolist() == [
        [41, 41, 42], [40, 117, 40], [100, 100, 100]
    ]  # fmt: skip
    shown = legend({0, 1, 18}, 200, space).reshape(-1, 3)
    assert (shown == (1, 2, 3)).all(axis=1).any()
    assert not (shown == CITYSCAPES.color_table[18]).all(axis=1).any()
