import pytest

from pinmem_core.errors import ConfigError
from pinmem_core.overrides import nested, validate, with_overrides


def test_overrides_are_typed_and_nested():
    settings = with_overrides(
        {"optim": {"lr": 1.0, "momentum": 0.5}},
        [
            "optim.lr=0.02",
            "model.memory.read=softmax",
            "init_weights=none",
            "sources=['a', 'b']",
            "targets=c,d",
        ],
    )
    config = validate(settings)
    assert (config.optim.lr, config.optim.momentum) == (0.02, 0.5)
    assert config.model.memory and config.model.memory.read == "softmax"
    assert config.init_weights is None
    assert config.sources == ("a", "b") and config.targets == ("c", "d")


def test_nested_does_not_touch_what_it_is_given():
    settings = {"optim": {"lr": 1.0}}
    nested(settings, {"optim.lr": 2.0})
    assert settings == {"optim": {"lr": 1.0}}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lrr=1", "unknown configuration key 'optim.lrr'"),
        ("optim.lr=fast", "'optim.lr'"),
        ("optim.lr=-1", "greater than 0"),
        ("optim.clip=true", "'optim.clip'.*number"),
        ("optim.warmup=true", "'optim.warmup'.*integer"),
        ("optim.betas=[0.9, 1]", "less than 1"),
        ("augmentation.scale=[2, 0.5]", "'augmentation.scale'.*first value"),
        ("augmentation.scale=[0, 1]", "'augmentation.scale.0'.*greater than 0"),
        ("optim.lr=inf", "'optim.lr'.*finite"),
        ("optim.weight_decay=nan", "'optim.weight_decay'.*finite"),
        ("optim.lr.x=1", "not a section|is a value"),
        ("optim.lr", "not of the form"),
        ("model.output_stride=12", "model.output_stride"),
    ],
)
def test_wrong_settings_are_refused_with_their_key(override, said):
    with pytest.raises(ConfigError, match=said):
        validate(with_overrides({"optim": {"lr": 0.1}}, [override]))


def test_a_close_key_is_suggested():
    with pytest.raises(ConfigError) as error:
        validate({"optim": {"momentun": 1}})
    assert "Did you mean 'optim.momentum'" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("crop=192", "'augmentation.crop'"),
        ("optim.crop=192", "'augmentation.crop'"),
        ("every=5", "'checkpoint.every' or 'evaluation.every'"),
        ("model.trunk=resnet18", "'model.backbone'"),
    ],
)
def test_a_key_without_its_section_is_suggested_whole(override, meant):
    with pytest.raises(ConfigError) as error:
        validate(with_overrides({}, [override]))
    assert meant in (error.value.hint or "")


def test_none_is_a_value_where_it_is_allowed_and_a_choice_where_that_exists():
    overrides = "augmentation.strong=none", "checkpoint.minutes=none", "model.memory=none"
    for settings in (
        with_overrides({}, overrides),
        {
            "augmentation": {"strong": "none"},
            "checkpoint": {"minutes": "none"},
            "model": {"memory": "none"},
        },
    ):
        config = validate(settings)
        assert config.augmentation.strong == "none"
        assert config.checkpoint.minutes is None and config.model.memory is None
    with pytest.raises(ConfigError, match="'seed'"):
        validate(with_overrides({}, ["seed=none"]))
