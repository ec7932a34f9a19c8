"""A checkpoint holds its own classes; those of Cityscapes stay as they were written."""

import json

import pytest
import torch

from pinmem_core.config import ModelConfig
from pinmem_core.errors import CheckpointError, ConfigError
from pinmem_core.export.files import export_weights
from pinmem_core.label_space import CITYSCAPES, LabelSpace, label_space
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint
from pinmem_core.overrides import validate


def space_of(count):
    """A label space of `count` classes of its own."""
    return LabelSpace(name=f"own-{count}", classes=[f"thing {n}" for n in range(count)])


def save(folder, space):
    torch.manual_seed(0)
    config = ModelConfig(backbone="tiny", feature_dim=16, label_space=space)
    save_checkpoint(Segmenter(config), folder, {})
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("count", [2, 7, 60, 254])
def test_a_checkpoint_holds_its_own_classes(tmp_path, count):
    space = label_space("idd-level1") if count == 7 else space_of(count)
    config = save(tmp_path / "c", space)
    assert config["classes"]["names"] == list(space.names)
    assert config["classes"]["colors"] == [list(color) for color in space.classes.values()]
    assert config["model"]["num_classes"] == count
    segmenter, _ = load_checkpoint(tmp_path / "c")
    assert segmenter.label_space == space and segmenter.label_space.names == space.names
    assert segmenter.memory.slots.shape == (count, 16)
    assert segmenter(torch.zeros(1, 3, 64, 64)).shape == (1, count, 64, 64)


def test_a_model_of_own_classes_is_exported_by_name(tmp_path, home):
    (home / "runs").mkdir(parents=True)
    save(home / "runs" / "mine" / "checkpoint", space_of(60))
    export_weights("mine", tmp_path / "out")
    assert load_checkpoint(tmp_path / "out")[0].label_space == space_of(60)


def test_the_classes_of_cityscapes_are_not_written_twice(tmp_path):
    config = save(tmp_path / "c", CITYSCAPES)
    assert "label_space" not in config["model"] and config["model"]["num_classes"] == 19
    assert list(config["model"])[4:7] == ["feature_dim", "num_classes", "test_time_bn"]
    assert load_checkpoint(tmp_path / "c")[0].label_space == CITYSCAPES


def test_fewer_classes_without_a_label_space_are_the_first_of_cityscapes(tmp_path):
    config = save(tmp_path / "c", CITYSCAPES)["model"]
    model = ModelConfig.model_validate({**config, "num_classes": 5})
    assert model.label_space.names == CITYSCAPES.names[:5]
    assert model.label_space.label_ids == CITYSCAPES.label_ids[:5]
    assert ModelConfig.model_validate(model.model_dump(mode="json")) == model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["classes"]["names"].reverse(), "its 'classes' are not those"),
        (lambda c: c["classes"]["colors"].reverse(), "its 'classes' are not those"),
        (lambda c: c["model"].update(num_classes=8), "has 7 classes"),
        (lambda c: c["model"].pop("label_space"), "'classes' are not those"),
        (lambda c: c["model"]["label_space"]["classes"].pop("sky"), "has 6 classes"),
        (lambda c: c["model"].update(label_space="idd"), "'idd' is none of"),
        (lambda c: c["model"]["label_space"].update(classes=["a", "a"]), "'a' is listed twice"),
        (lambda c: c["model"]["label_space"].update(classes=[*"abcdefg"] * 40), "listed twice"),
        (lambda c: c["model"]["label_space"].update(classes={"a": [0, 0, 300]}), "is wrong"),
        (
            lambda c: c["model"]["label_space"].update(classes=[str(n) for n in range(255)]),
            "at most 254",
        ),
    ],
)
def test_classes_that_do_not_fit_are_refused_in_one_sentence(tmp_path, change, said):
    config = save(tmp_path / "c", label_space("idd-level1"))
    change(config)
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said) as error:
        load_checkpoint(tmp_path / "c")
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"num_classes": 60}, "num_classes is 60, but the label space 'cityscapes-19' has 19"),
        ({"num_classes": 19, "label_space": "camvid-11"}, "but the label space 'camvid-11' has 11"),
        ({"label_space": "camvid"}, "'camvid' is none of"),
        ({"label_space": {"name": "x", "classes": ["a"]}}, "at least 2"),
    ],
)
def test_settings_that_contradict_the_classes_are_refused(model, said):
    with pytest.raises(ConfigError, match=said):
        validate({"model": model})


def test_spaces_are_equal_by_the_order_of_their_classes_too():
    there, back = (LabelSpace(name="x", classes=[*names]) for names in ("ab", "ba"))
    assert there != back and there == LabelSpace(name="x", classes=["a", "b"])
    assert len({there.color_table.shape, back.color_table.shape}) == 1 and there != back
