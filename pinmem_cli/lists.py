"""What `pinmem train` lists: recipes, methods, settings and backbones."""

from json import dumps
from typing import Any

from pinmem_cli.options import shell_join
from pinmem_cli.output import Output, table


def show_recipes(out: Output) -> None:
    """List the recipes."""
    from pinmem_core.overrides import validate
    from pinmem_core.recipe import load_recipe, recipe_names, recipe_title

    text = "what it is", "network"
    rows = table("recipe", *text, "iterations", "crop", text=text)
    recipes = []
    for name in recipe_names():
        config, title = validate(load_recipe(name)), recipe_title(name)
        network = {"backbone": config.model.backbone, "decoder": config.model.decoder}
        crop = config.augmentation.crop
        what = {"title": title, **network, "iterations": config.iterations, "crop": crop}
        recipes.append({"name": name, **what})
        rows.add_row(name, title, ", ".join(network.values()), str(config.iterations), str(crop))
    out.result({"recipes": recipes}, rows)
    out.next_step(f"pinmem train --show {recipe_names()[0]}")


def show_recipe(out: Output, name: str) -> None:
    """Show a recipe's file, or every setting as JSON."""
    from pinmem_core.overrides import validate
    from pinmem_core.recipe import load_recipe, recipe_text, recipe_title

    config = validate(load_recipe(name)).model_dump(mode="json")
    data = {"name": name, "title": recipe_title(name), "config": config}
    out.result(data, *recipe_text(name).splitlines())
    out.next_step(f"pinmem train --recipe {shell_join(name)} --dry-run")


def show_methods(out: Output) -> None:
    """List the training methods, each with the first line of its documentation."""
    from pinmem_core.methods import methods

    rows = table("method", "what it is", text=["what it is"])
    listed = []
    for name, method in methods.all().items():
        meaning = next(iter((method.__doc__ or "").splitlines()), "")
        settings = [*method.Config.model_fields]
        listed.append(
            {"name": name, "title": meaning, "memory": method.memory, "settings": settings}
        )
        rows.add_row(name, meaning)
    out.result({"methods": listed}, rows)
    out.next_step("pinmem train --sources demo --method aggregate --dry-run")


def show_settings(out: Output) -> None:
    """List every setting, and those of the methods' own."""
    from pinmem_core.methods import methods
    from pinmem_core.setting_list import list_settings

    settings = [*list_settings()]
    for name, method in methods.all().items():
        for setting in list_settings(method.Config, "method_config."):
            settings.append(setting._replace(meaning=f"{name}: {setting.meaning}"))
    rows = table("key", "type", "default", "meaning", text=["type", "default", "meaning"])
    for setting in settings:
        rows.add_row(setting.key, setting.type, _toml_value(setting.default), setting.meaning)
    out.result({"settings": [setting._asdict() for setting in settings]}, rows)
    out.next_step("pinmem train --recipe demo --set optim.lr=0.02 --dry-run")


def show_backbones(out: Output, pattern: str) -> None:
    """List backbones, and the published weights of those of timm with their licences."""
    from pinmem_core.api import list_backbones
    from pinmem_core.errors import ConfigError
    from pinmem_core.models.backbones.timm import weights_of

    patterns = [pattern] if pattern.startswith("timm:") else [pattern, f"timm:{pattern}"]
    listed = [name for each in patterns for name in list_backbones(each)]
    if not listed:
        raise ConfigError(
            f"no backbone matches '{pattern}'.",
            "Those of timm need: pip install 'pinmem[backbones]'. List all: "
            "pinmem train --backbones '*'",
        )
    rows = table("backbone", "weights (licence)", text=["weights (licence)"])
    data = []
    for name in listed:
        weights = weights_of(name) if name.startswith("timm:") else {}
        data.append({"name": name, "weights": weights})
        words = (f"{tag} ({licence or 'unknown'})" for tag, licence in weights.items())
        rows.add_row(name, ", ".join(words))
    out.result({"backbones": data}, rows)
    out.next_step("pinmem train --list")


def _toml_value(value: Any) -> str:
    return "none" if value is None else dumps(value)
