"""Label spaces: definitions, and maps between them."""

import numpy as np
import pytest
from pydantic import ValidationError

from pinmem_core.errors import ConfigError
from pinmem_core.label_space import (
    CITYSCAPES,
    LabelSpace,
    common_space,
    default_color,
    label_space,
    label_spaces,
)

CAMPUS = LabelSpace(
    name="campus",
    classes=["path", "lawn", "house"],
    maps={"cityscapes-19": {"road": "path", "terrain": "lawn", "building": "house"}},
)


@pytest.mark.parametrize("space", label_spaces().values(), ids=label_spaces().keys())
def test_the_maps_of_known_spaces_name_classes_of_both(space):
    for name, groups in space.maps.items():
        assert {*groups} <= {*label_space(name).names}
        assert space.maps_to(label_space(name))


def test_cityscapes_has_the_subsets_of_the_literature():
    assert {name: int(members.sum()) for name, members in CITYSCAPES.subsets.items()} == {
        "19": 19,
        "16": 16,
        "13": 13,
    }
    left_out = np.flatnonzero(~CITYSCAPES.subsets["16"])
    assert {CITYSCAPES.names[train_id] for train_id in left_out} == {"terrain", "truck", "train"}
    assert label_space("idd-level1").subsets == {}


def test_classes_without_a_counterpart_are_ignored():
    table = label_space("camvid-11").table_to(label_space("idd-level1"))
    names = [*label_space("idd-level1").names, *["ignored"] * 249]
    mapped = {name: names[table[i]] for i, name in enumerate(label_space("camvid-11").names)}
    assert mapped["pedestrian"] == "living thing"
    assert mapped["bicyclist"] == "ignored"  # rider and bicycle in one
    assert mapped["building"] == mapped["tree"] == "far object"
    assert (table[11:] == 255).all()


def test_a_map_leads_through_known_spaces():
    table = CAMPUS.table_to(label_space("idd-level1"))
    assert table[:4].tolist() == [0, 1, 5, 255]


def test_a_space_whose_names_all_occur_in_another_is_mapped_by_name():
    few = LabelSpace(name="few", classes=["sky", "road"])
    assert few.table_to(CITYSCAPES)[:3].tolist() == [10, 0, 255]
    identity = CITYSCAPES.table_to(CITYSCAPES)
    assert (identity == np.where(np.arange(256) < 19, np.arange(256), 255)).all()


def test_classes_of_idd_that_mix_those_of_cityscapes_are_ignored_there():
    idd = label_space("idd-26")
    table = idd.table_to(CITYSCAPES)[: len(idd)].tolist()
    assert len({*table} - {255}) == 14
    mixed = ("person or animal", "pole or polegroup", "sky or fallback background")
    assert all(table[idd.train_ids[name]] == 255 for name in mixed)
    coarse = idd.table_to(label_space("idd-level1"))[: len(idd)].tolist()
    assert coarse == [0, 0, 1, 1, 2, 2, *[3] * 7, *[4] * 9, 5, 5, 5, 6]


def test_a_split_class_is_named():
    with pytest.raises(ConfigError, match="'non-drivable' is several classes") as raised:
        label_space("idd-level1").table_to(CITYSCAPES)
    assert "--classes idd-level1" in (raised.value.hint or "")


def test_unrelated_spaces_have_no_map():
    other = LabelSpace(name="sea", classes=["water", "boat"])
    assert not other.maps_to(CITYSCAPES)
    with pytest.raises(ConfigError, match="cannot be mapped"):
        other.table_to(CITYSCAPES)
    with pytest.raises(ConfigError, match="no known classes in common"):
        common_space([other, CITYSCAPES])


def test_the_common_space_is_the_finest_one():
    level1, camvid = label_space("idd-level1"), label_space("camvid-11")
    assert common_space([CITYSCAPES, level1]).name == "idd-level1"
    assert common_space([camvid, CITYSCAPES]).name == "cityscapes-19"
    assert common_space([CITYSCAPES]).name == "cityscapes-19"
    assert common_space([camvid, CAMPUS]).name == "cityscapes-19"  # neither of both


def test_colors_have_defaults_that_differ():
    assert CAMPUS.classes["path"] == (128, 0, 0)
    assert len({default_color(number) for number in range(254)}) == 254
    mixed = LabelSpace(name="mixed", classes={"a": "1,2,3", "b": None, "c": [4, 5, 6]})
    assert list(mixed.classes.values()) == [(1, 2, 3), (0, 128, 0), (4, 5, 6)]


@pytest.mark.parametrize(
    "values",
    [
        {"classes": ["one"]},
        {"classes": [f"class {number}" for number in range(255)]},
        {"classes": ["twice", "twice"]},
        {"classes": ["ignore", "road"]},
        {"classes": {"a": "1,2", "b": None}},
        {"classes": {"a": {"red": 1}, "b": None}},
        {"classes": [["a"], "b"]},
        {"classes": ["a", 2]},
        {"classes": ["a", "b"], "maps": {"cityscapes-19": [["a"]]}},
        {"classes": {"a": "1,2,256", "b": None}},
        {"classes": ["a", "b\n"]},
        {"classes": ["a", "b"], "maps": {"cityscapes-19": {"road": ["c"]}}},
        {"classes": ["a", "b"], "maps": {"cityscapes-19": {"road": "a", "sky": "a"}}},
        {"classes": ["a", "b"], "label_ids": [1]},
        {"classes": ["a", "b"], "colour": "red"},
    ],
)
def test_inconsistent_spaces_are_refused(values):
    with pytest.raises(ValidationError):
        LabelSpace.model_validate({"name": "mine", **values})


def test_an_unknown_space_has_a_suggestion():
    with pytest.raises(ConfigError, match="unknown label space 'cityscape-19'") as raised:
        label_space("cityscape-19")
    assert "Did you mean 'cityscapes-19'?" in (raised.value.hint or "")
