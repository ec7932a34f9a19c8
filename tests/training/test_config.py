import pytest
from pydantic import field_validator

from pinmem_core.config import Settings
from pinmem_core.errors import ConfigError
from pinmem_core.methods import methods
from pinmem_core.overrides import nested, validate, validated, with_overrides
from pinmem_core.setting_list import list_settings


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
        ("augmentation.scale=[1, 1e9]", "'augmentation.scale.1'.*less than or equal to 100"),
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


@pytest.mark.parametrize("override", ["optim.betas=[false, 0.9]", "augmentation.scale=[true, 2]"])
def test_a_boolean_in_a_list_is_no_number(override):
    with pytest.raises(ConfigError, match="unable to parse"):
        validate(with_overrides({}, [override]))


def test_spaces_around_names_do_not_count():
    config = validate(with_overrides({}, ["sources= toy:red , toy:blue", "logger=lines, wandb"]))
    assert config.sources == ("toy:red", "toy:blue")
    assert config.logger == ("lines", "wandb")
    with pytest.raises(ConfigError, match="a source is named twice"):
        validate({"sources": "toy:red, toy:red"})


def test_a_mapping_sets_only_the_keys_of_a_section_that_it_holds():
    recipe = {"optim": {"name": "adamw", "lr": 1.0}, "model": {"memory": {"gate": 0.5}}}
    config = validate(
        nested(recipe, {"optim": {"lr": 0.25}, "model": {"memory": {"read": "softmax"}}})
    )
    assert (config.optim.name, config.optim.lr) == ("adamw", 0.25)
    assert (config.model.memory.gate, config.model.memory.read) == (0.5, "softmax")
    assert recipe["optim"]["lr"] == 1.0
    adapters = {"model": {"adapters": {"lora": {}}}}
    assert validate(nested(adapters, {"model.adapters": {}})).model.adapters == {}


class Own(Settings):
    needed: int
    chosen: int = 0

    @field_validator("chosen")
    @classmethod
    def _refuse_one(cls, value):
        if value == 1:
            raise ValueError
        assert value != 2
        return value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"needed": 1, "choosen": 1}, "unknown configuration key 'method_config.choosen'"),
        ({"needed": 1, "chosen": 1}, "'method_config.chosen': the value is not allowed"),
        ({"needed": 1, "chosen": 2}, "'method_config.chosen': "),
    ],
)
def test_settings_of_a_plugin_are_refused_with_their_key(values, message):
    with pytest.raises(ConfigError, match=message):
        validated(Own, values, "method_config")


def test_a_seed_that_torch_cannot_take_is_refused():
    with pytest.raises(ConfigError, match="'seed': input should be less than"):
        validate({"seed": 2**64})


def test_a_dotted_key_in_quotes_is_explained():
    with pytest.raises(ConfigError, match=r"unknown configuration key 'optim\.lr'") as error:
        validate({"optim.lr": 1})
    assert error.value.hint == "Write it without quotation marks."


@pytest.mark.parametrize("override", ["minutes=1e308", "augmentation.rare_classes=1e-320"])
def test_numbers_whose_quotients_overflow_are_refused(override):
    with pytest.raises(ConfigError, match=r"input should be (less|greater) than or equal to"):
        validate(with_overrides({}, [override]))


def test_the_list_of_settings_names_the_types_of_numbers_and_names():
    shade = list_settings(methods.get("shade").Config, "method_config.")
    types = {setting.key: setting.type for setting in (*list_settings(), *shade)}
    assert types["optim.betas"] == types["augmentation.scale"] == "[number, number]"
    assert types["method_config.things"] == "list of text | none"
