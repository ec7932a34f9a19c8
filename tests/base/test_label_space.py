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
    first_classes,
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
    names = [*label_space("cityscapes-13").names]
    assert LabelSpace(name="own", classes=names, maps={"cityscapes-13": names}).subsets == {}


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
    with pytest.raises(ConfigError) as raised:
        label_space("idd-level1").table_to(CITYSCAPES)
    assert raised.value.message == (
        "the classes 'idd-level1' cannot be mapped to the classes 'cityscapes-19': "
        "'non-drivable' is several classes there (sidewalk, terrain)."
    )
    assert raised.value.hint == "Use '--classes idd-level1', to which both can be mapped."


@pytest.mark.parametrize("other", ["camvid-11", "mapillary-66"])
def test_the_finest_classes_to_which_both_spaces_map_are_suggested(other):
    with pytest.raises(ConfigError) as raised:
        label_space("idd-26").table_to(label_space(other))
    assert raised.value.message == (
        f"the classes 'idd-26' cannot be mapped to the classes '{other}'."
    )
    assert raised.value.hint == "Use '--classes cityscapes-19', which both map to."


def test_unrelated_spaces_have_no_map():
    other = LabelSpace(name="sea", classes=["water", "boat"])
    assert not other.maps_to(CITYSCAPES)
    with pytest.raises(ConfigError) as raised:
        other.table_to(CITYSCAPES)
    assert "no class of 'sea' is assigned to one there" in raised.value.message
    assert "'sea' in its card, 'label_space: maps: cityscapes-19: ...'" in raised.value.hint
    with pytest.raises(ConfigError) as raised:
        common_space([other, CITYSCAPES, other])
    assert raised.value.message == (
        "the classes 'cityscapes-19', 'sea' have no known classes in common."
    )
    assert "in the cards: 'label_space: maps: ...'" in (raised.value.hint or "")


def test_tables_hold_a_byte_for_each_label():
    space = LabelSpace(name="own", classes={"mud": (1, 2, 3), "grass": None}, label_ids=[7, 9])
    for table, values in (
        (space.color_table, [[1, 2, 3], [0, 128, 0], [0, 0, 0]]),
        (space.label_id_table, [7, 9, 0]),
        (space.table_to(space), [0, 1, 255]),
    ):
        assert table is not None and table.dtype == np.uint8 and len(table) == 256
        assert table[:3].tolist() == values and (table[3:] == table[2]).all()
    assert CAMPUS.label_id_table is None


def test_a_space_is_known_by_its_name_and_its_classes():
    mine = LabelSpace(name=CITYSCAPES.name, classes=CITYSCAPES.classes)
    assert mine != CITYSCAPES and mine.canonical is CITYSCAPES
    other = LabelSpace(name=CITYSCAPES.name, classes=["road", "sky"])
    assert other.canonical is other and CAMPUS.canonical is CAMPUS
    assert [*label_spaces()] == sorted(label_spaces())


def test_spaces_with_the_same_classes_in_another_order_differ():
    space, same = (LabelSpace(name="x", classes={"a": "1,1,1", "b": "2,2,2"}) for _ in range(2))
    turned = LabelSpace(name="x", classes={"b": "2,2,2", "a": "1,1,1"})
    assert space == same and hash(space) == hash(same) and space != turned and space != "x"
    assert space.same_as(same) and not space.same_as(turned)
    with pytest.raises(ValidationError, match="frozen"):
        space.name = "y"


def test_the_first_classes_of_cityscapes_keep_their_colours_and_ids():
    assert first_classes(19) is CITYSCAPES
    few = first_classes(5)
    assert few.name == "cityscapes-first-5" and few.label_ids == CITYSCAPES.label_ids[:5]
    assert [*few.classes.items()] == [*CITYSCAPES.classes.items()][:5]


def test_the_common_space_is_the_finest_one():
    level1, camvid = label_space("idd-level1"), label_space("camvid-11")
    assert common_space([CITYSCAPES, level1]).name == "idd-level1"
    assert common_space([camvid, CITYSCAPES]).name == "cityscapes-19"
    assert common_space([CITYSCAPES]).name == "cityscapes-19"
    assert common_space([camvid, CAMPUS]).name == "cityscapes-19"  # neither of both


def test_colors_have_defaults_that_differ():
    assert CAMPUS.classes["path"] == (128, 0, 0)
    assert len({default_color(number) for number in range(254)}) == 254
    assert [default_color(n) for n in (2, 7, 253)] == [(128, 128, 0), (64, 0, 0), (96, 224, 192)]
    mixed = LabelSpace(name="mixed", classes={"a": "1,2,3", "b": None, "c": [4, 5, 6]})
    assert list(mixed.classes.values()) == [(1, 2, 3), (0, 128, 0), (4, 5, 6)]


def test_the_largest_allowed_space_is_accepted():
    names = ["x" * 100, *map(str, range(253))]
    space = LabelSpace(name="n" * 100, classes=names, maps={"cityscapes-19": ["1"]})
    assert len(space) == 254 and space.maps["cityscapes-19"] == {"1": ("1",)}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"classes": ["one"]}, "at least 2 items"),
        ({"classes": [f"class {number}" for number in range(255)]}, "at most 254 items"),
        ({"classes": ["a", "twice", "twice"]}, "the class 'twice' is listed twice"),
        ({"classes": ["ignore", "road"]}, "'ignore' cannot be a class"),
        ({"classes": {"a": "1,2", "b": None}}, "the colour of 'a' is not three numbers"),
        ({"classes": {"a": {"red": 1}, "b": None}}, "the colour of 'a' is not three numbers"),
        ({"classes": [["a"], "b"]}, "is not the name of a class"),
        ({"classes": ["a", 2]}, "is not the name of a class"),
        ({"classes": "ab"}, "valid dictionary.*input_value='ab'"),
        ({"classes": ["a", "b"], "maps": {"cityscapes-19": [["a"]]}}, "is not the name of a class"),
        ({"classes": {"a": "1,2,256", "b": None}}, "less than or equal to 255"),
        ({"classes": {"a": "1,2,-1", "b": None}}, "greater than or equal to 0"),
        ({"classes": ["a", "b\n"]}, "should match pattern"),
        ({"classes": ["a", ""]}, "at least 1 character"),
        ({"classes": ["a", "x" * 101]}, "at most 100 characters"),
        ({"classes": ["a", "b"], "name": "x" * 101}, "at most 100 characters"),
        ({"classes": ["a", "b"], "name": "Mine"}, "should match pattern"),
        ({"classes": ["a", "b"], "maps": {"cityscapes-19": {"road": ["c"]}}}, "'c' is not a class"),
        (
            {"classes": ["a", "b"], "maps": {"cityscapes-19": {"road": "a", "sky": "a"}}},
            "maps.cityscapes-19: 'a' is listed twice",
        ),
        ({"classes": ["a", "b"], "label_ids": [1]}, "label_ids needs one id for each class"),
        ({"classes": ["a", "b"], "colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_inconsistent_spaces_are_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        LabelSpace.model_validate({"name": "mine", **values})


def test_an_unknown_space_has_a_suggestion():
    with pytest.raises(ConfigError, match="unknown label space 'cityscape-19'") as raised:
        label_space("cityscape-19")
    assert "Did you mean 'cityscapes-19'?" in (raised.value.hint or "")
