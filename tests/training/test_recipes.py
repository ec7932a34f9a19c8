"""What the recipes promise, and how they are shown."""

import pytest
import torch
from conftest import Result, small_config

from pinmem_core.data.catalog import cards
from pinmem_core.data.prepared import Selection
from pinmem_core.errors import ConfigError
from pinmem_core.methods import methods
from pinmem_core.models import Segmenter
from pinmem_core.models.memory import soft_masks
from pinmem_core.overrides import nested, validate
from pinmem_core.recipe import load_recipe, recipe_names, recipe_text, recipe_title
from pinmem_core.training import train
from pinmem_core.training.optim import learning_rate
from pinmem_core.training.setup import resolve

PAPER = [name for name in recipe_names() if name.startswith("paper")]
METHODS = ("pinmem", "mldg", "aggregate")


def test_these_are_the_recipes():
    assert recipe_names() == [
        "camvid",
        "camvid-dinov2",
        "convnext-tiny",
        "demo",
        "dinov2-frozen",
        "dinov2-full",
        "dinov2-lora",
        "dinov2-rein",
        "dinov2-soma",
        "mobilenetv2",
        "paper-resnet101",
        "paper-resnet50",
        "paper-resnet50-g",
        "paper-resnet50-gsi",
        "pinmem-plus",
        "resnet18",
        "robustnet-resnet50",
        "shade-resnet50",
        "spc-resnet50",
        "starter",
        "wildnet-resnet50",
    ]


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_suits_every_method(name, method):
    settings = nested(load_recipe(name), {"method": method})
    config = resolve(validate({"sources": ["demo:arcade"], **settings}))
    assert (config.model.memory is not None) == (method == "pinmem")
    for text in (*config.sources, *config.targets):
        Selection.parse(text)  # knows the dataset and the domain


@pytest.mark.parametrize("name", recipe_names())
def test_a_header_has_a_title_the_commands_and_published_figures(name):
    lines = recipe_text(name).splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert header[0] == f"# {recipe_title(name)}" and 10 < len(recipe_title(name)) < 60
    assert not recipe_title(name).startswith("#")
    commands = [line for line in header if f"pinmem train --recipe {name}" in line]
    own = validate(load_recipe(name)).method
    named = {line.partition("--method ")[2] or own for line in commands[:3]}
    assert named == {*METHODS} if own in METHODS else {own, "aggregate"} <= named
    assert any(line.startswith("# Published mIoU %") for line in header)


@pytest.mark.parametrize(
    ("name", "sources", "iterations", "parameters", "without_memory"),
    [
        ("paper-resnet50", ["gtav", "synthia"], 30_463, 45_284_057, 45_081_542),
        ("paper-resnet50-gsi", ["gtav", "synthia", "idd"], 69_099, 45_284_057, 45_081_542),
        ("paper-resnet50-g", ["gtav"], 23_033, 45_284_057, 45_081_542),
        ("paper-resnet101", ["gtav", "synthia"], 70_585, 66_904_185, 66_701_670),
    ],
)
def test_the_papers_recipes_are_the_papers(name, sources, iterations, parameters, without_memory):
    config = validate(load_recipe(name))
    assert list(config.sources) == sources and config.pseudo_domains == 2
    assert config.targets == ("cityscapes", "bdd100k", "mapillary")
    assert (config.method, config.iterations, config.batch) == ("pinmem", iterations, 4)
    assert config.model.output_stride == (8 if "101" in name else 16)
    memory, loss, optim = config.model.memory, config.loss, config.optim
    assert (memory.read, memory.momentum, memory.temperature) == ("gumbel", 0.8, 1)
    assert memory.init_batches == 2 * (2975 // 4)
    assert (loss.auxiliary, loss.read, loss.divergence, loss.classification) == (
        0.4,
        0.02,
        0.4,
        0.2,
    )
    assert (optim.momentum, optim.weight_decay) == (0.9, 5e-4)
    assert (optim.inner_lr, optim.inner_share) == (0.001, 0.25)
    assert learning_rate(optim, 0, iterations) == 0.01
    assert learning_rate(optim, 12_000, iterations) == pytest.approx(0.01 * 2.718281828 ** (-0.9))
    augmentation = config.augmentation
    assert (augmentation.crop, augmentation.scale) == (768, (0.5, 2.0))
    assert augmentation.strong == "meta-test"
    assert config.init_weights == "IMAGENET1K_V1"
    for model, expected in (
        (config.model, parameters),
        (config.model.model_copy(update={"memory": None}), without_memory),
    ):
        with torch.device("meta"):
            assert sum(p.numel() for p in Segmenter(model).parameters()) == expected


@pytest.mark.parametrize("name", sorted({*recipe_names()} - {*PAPER}))
def test_recipes_of_our_own_end_with_a_learning_rate_of_zero(name):
    assert validate(load_recipe(name)).optim.schedule == "polynomial"


def test_resnet18_is_the_originals():
    config = validate(load_recipe("resnet18")).model
    with torch.device("meta"):
        assert sum(p.numel() for p in Segmenter(config).parameters()) == 18_001_113
    assert config.output_stride == 32


@pytest.mark.parametrize("name", recipe_names())
def test_crops_leave_no_weight_that_depends_on_the_float_type_or_the_header_says_so(name):
    """A class of one pixel, wherever that is, is written in float32 if it is in float64."""
    config = validate(load_recipe(name))
    crop, stride = config.augmentation.crop, config.model.output_stride
    labels = torch.arange(crop)[None, None] == torch.arange(crop)[:, None, None]  # a pixel each
    single, double = (
        soft_masks(labels.long(), 2, (1, -(-crop // stride)), dtype)[:, 1] != 0
        for dtype in (torch.float32, torch.float64)
    )
    told = "depend on the float type" in " ".join(recipe_text(name).replace("#", "").split())
    assert torch.equal(single, double) != told


def test_every_card_names_a_recipe_that_exists():
    assert {card.recipe for card in cards().values()} <= {*recipe_names(), None}


def test_a_close_recipe_is_suggested():
    with pytest.raises(ConfigError) as error:
        load_recipe("paper-resnet5")
    assert "'paper-resnet50'" in (error.value.hint or "")


def test_list_shows_every_recipe(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = Result("train", "--list")
    assert shown.code == 0
    for name in recipe_names():
        assert name in shown.out and recipe_title(name) in shown.out
    listed = {entry["name"]: entry for entry in Result("train", "--list", "--json").json["recipes"]}
    assert sorted(listed) == recipe_names()
    assert listed["paper-resnet101"] == {
        "name": "paper-resnet101",
        "title": "The paper's second network, GTAV + SYNTHIA",
        "backbone": "resnet101-v2",
        "decoder": "deeplabv2",
        "iterations": 70_585,
        "crop": 768,
    }


@pytest.mark.parametrize("name", recipe_names())
def test_show_gives_the_file_as_it_stands(name):
    assert Result("train", "--show", name).out == recipe_text(name)


def test_show_as_json_gives_every_setting():
    shown = Result("train", "--show", "demo", "--json").json
    assert shown["title"] == recipe_title("demo")
    assert shown["config"] == validate(load_recipe("demo")).model_dump(mode="json")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--list", "--show", "demo"],
        ["--list", "--recipe", "demo"],
        ["--show", "demo", "--seed", "1"],
        ["--show", "demo", "--resume", "auto"],
        ["--show", "demo", "--dry-run"],
        ["--settings", "--recipe", "demo"],
        ["--settings", "--list"],
        ["--methods", "--seed", "1"],
        ["--list", "--from", "starter"],
        ["--show", "demo", "--freeze", "backbone"],
    ],
)
def test_list_and_show_go_alone(arguments):
    refused = Result("train", *arguments)
    assert refused.code == 2 and "would do nothing" in refused.err and refused.out == ""


def test_showing_an_unknown_recipe_suggests_one():
    refused = Result("train", "--show", "demmo")
    assert refused.code == 2 and "Did you mean 'demo'" in refused.err


@pytest.mark.parametrize("name", ["demo", "paper-resnet101", "pinmem-plus"])
def test_a_recipe_that_is_shown_is_a_file_with_the_same_settings(name, tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(Result("train", "--show", name).out)
    assert load_recipe(str(path)) == load_recipe(name)
    assert Result("train", "--show", str(path)).out == path.read_text()


def test_the_settings_of_a_run_are_repeated_and_shown_as_toml(tmp_path, home):
    config = small_config(
        method="mldg",
        iterations=1,
        augmentation__strong="none",
        checkpoint__minutes=None,
        optim__betas=(0.8, 0.9),
    )
    train(config, home / "runs" / "first")
    settings = validate(load_recipe("first"))
    assert settings == resolve(config) and settings.checkpoint.minutes is None
    shown = Result("train", "--show", "first")
    assert shown.out.startswith("# The settings of the run first\n")
    (tmp_path / "my.toml").write_text(shown.out)
    assert validate(load_recipe(str(tmp_path / "my.toml"))) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = 1\nbatch = = 2\n", "line 2"),
        ("crop = 192", "unknown configuration key 'crop'"),
        ("seed = -1", "'seed'"),
    ],
)
def test_a_wrong_recipe_file_is_named_with_what_is_wrong(tmp_path, text, said):
    path = tmp_path / "my.toml"
    path.write_text(text)
    for option in ("--recipe", "--show"):
        refused = Result("train", option, str(path))
        assert refused.code == 2 and str(path) in refused.err and said in refused.err
    with pytest.raises(ConfigError, match="no such file"):
        load_recipe("absent.toml")


def test_a_folder_without_settings_is_no_recipe(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_recipe(str(tmp_path))


def test_settings_lists_every_key_with_type_default_and_meaning(monkeypatch):
    listed = {setting.pop("key"): setting for setting in _settings()}
    assert all(setting["type"] and setting["meaning"] for setting in listed.values())
    keys = {key for key in listed if not key.startswith("method_config.")}
    config = validate({})
    assert {key.partition(".")[0] for key in keys} == {*config.model_dump()}
    assert listed["augmentation.crop"] == {
        "type": "integer",
        "default": 768,
        "meaning": "Side of the square crop, in pixels.",
    }
    assert listed["optim.clip"]["type"] == "number | none"
    assert listed["method_config.variant"]["default"] == "b"
    monkeypatch.setenv("COLUMNS", "200")
    shown = Result("train", "--settings").out
    assert all(key in shown for key in listed)


def test_the_methods_are_listed_with_a_line_each():
    listed = Result("train", "--methods", "--json").json["methods"]
    assert [method["name"] for method in listed] == sorted(methods.all())
    assert all(5 < len(method["title"]) < 100 for method in listed)
    shown = Result("train", "--methods")
    assert shown.code == 0 and all(method["name"] in shown.out for method in listed)
    isw = next(method for method in listed if method["name"] == "isw")
    assert {"loss", "weight", "start", "placebo"} <= {*isw["settings"]}


def _settings():
    return Result("train", "--settings", "--json").json["settings"]
