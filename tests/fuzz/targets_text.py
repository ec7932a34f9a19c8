"""Texts: cards, studies, overrides, protocols, domain names."""

import json
import tomllib
from functools import cache
from pathlib import Path
from random import Random

import yaml

from fuzz.cases import ACCEPTED, INTACT_SHARE, RIGHT, Case, Target, require
from fuzz.mutators import mutated_lines, mutated_text
from pinmem_core.config import TrainConfig
from pinmem_core.data.catalog import get_card, read_card, write_card
from pinmem_core.data.prepared import Selection
from pinmem_core.inference.protocols import PROTOCOLS, get_protocol
from pinmem_core.overrides import validate, with_overrides
from pinmem_core.recipe import load_recipe, recipe_names
from pinmem_core.study.sweep import read_sweep

_ROOT = Path(__file__).parents[2]
_OWN_CARD = """\
name: mine
title: My streets
version: 2
archives:
  - file: mine.zip
    url: https://example.org/mine.zip
    bytes: 1000
    part: images
label_maps:
  mine:
    values: {0: void, 1: road, 2: lane, 4: sky, 17: car}
    classes: {road: [1, 2], sky: 4, car: 17}
layouts:
  - name: flat
    image: "{split}/images/{name}.png"
    label: "{split}/labels/{name}.png"
    label_maps: mine
    id: "{split}_{name}"
"""
_CARD_LINES = (
    *("a: &a [x, x]", "b: &b [*a, *a, *a, *a]", "<<: *a", "values: {0-99999999999: road}"),
    *("    regex: '(a+)+b'", "split_lists: {val: ../../etc/passwd}", "name: ../../up", "name: NUL"),
    *("    url: file:///etc/passwd", "    image: /etc/*", "    bytes: -1", "title: !!binary x"),
)


@cache
def _cards() -> tuple[str, ...]:
    files = sorted((_ROOT / "pinmem_core" / "datasets").glob("*.yaml"))
    return (*(file.read_text(encoding="utf-8") for file in files), *[_OWN_CARD] * 12)


def _make_card(rng: Random) -> Case:
    text = rng.choice(_cards())
    if rng.random() < INTACT_SHARE:
        return Case({"card.yaml": text.encode()}, intact="split_lists" not in text)
    return Case({"card.yaml": mutated_lines(rng, text, _CARD_LINES)})


def _read_card(case: Case, folder: Path) -> str:
    card = read_card(folder / "card.yaml")
    # The parser in Python takes a tab behind a value for an error, which YAML does not.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    node = yaml.compose(case.files["card.yaml"].decode("utf-8-sig"), loader)
    require(node is None or not _repeats(node), "a key is given twice")
    parts = Path(card.name).parts
    require(len(parts) == 1 and parts[0] not in (".", "..", "/"), "the name is a path")
    write_card(card, folder / "again.yaml")
    require(read_card(folder / "again.yaml") == card, "written and read again, it differs")
    return RIGHT


def _repeats(node: yaml.Node) -> bool:
    if isinstance(node, yaml.MappingNode):
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key.value, str)]
        return len({*keys}) < len(keys) or any(_repeats(value) for _, value in node.value)
    return isinstance(node, yaml.SequenceNode) and any(map(_repeats, node.value))


@cache
def _studies() -> tuple[str, ...]:
    files = sorted((_ROOT / "docs" / "study").glob("*.toml"))
    return tuple(file.read_text(encoding="utf-8") for file in files)


def _make_study(rng: Random) -> Case:
    text = rng.choice(_studies())
    if rng.random() < INTACT_SHARE:
        return Case({"study.toml": text.encode()}, intact=True)
    more = ("seeds = [1.5]", "[variants.'../x']\nabout = 'up'", "seeds = [0, 0]", "a.b.c = 1")
    return Case({"study.toml": mutated_lines(rng, text, more)})


def _read_study(case: Case, folder: Path) -> str:
    sweep = read_sweep(folder / "study.toml")
    given = tomllib.loads(case.files["study.toml"].decode("utf-8-sig"))
    require(list(sweep.seeds) == given["seeds"], "other seeds")
    require(set(sweep.variants) == set(given["variants"]), "other variants")
    require(not any("/" in name or name == ".." for name in sweep.variants), "a name is a path")
    for variant, seed in list(sweep.runs())[:50]:
        config = sweep.config(variant, seed)
        require(config.seed == seed and not config.targets, "another configuration")
        sweep.settings_of(variant, seed)
    return RIGHT


_RECIPE_KEYS = ("iterations=7", "model.memory.residual=true", "optim.lr=0.01", "seed=3")


def _make_recipe(rng: Random) -> Case:
    """A recipe's name and overrides: what stands after `--recipe` and `--set`."""
    name = rng.choice(recipe_names())
    flat = [f"{key}={json.dumps(value)}" for key, value in _flat(TrainConfig().model_dump())]
    sets = [rng.choice((*flat, *_RECIPE_KEYS)) for _ in range(rng.randint(1, 3))]
    if rng.random() < INTACT_SHARE:
        return Case({"sets": json.dumps([name, "seed=3"]).encode()}, intact=True)
    place = rng.randrange(len(sets))
    sets[place] = mutated_text(rng, sets[place])
    name = mutated_text(rng, name) if rng.random() < 0.1 else name
    return Case({"sets": json.dumps([name, *sets]).encode()})


def _flat(settings: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for key, value in settings.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else []
        found += inner or [(f"{prefix}{key}", value)]
    return found


def _read_recipe(case: Case, folder: Path) -> str:
    name, *sets = json.loads((folder / "sets").read_text())
    config = validate(with_overrides(load_recipe(name), sets))
    again = validate(json.loads(json.dumps(config.model_dump(mode="json"), allow_nan=False)))
    require(again == config, "written and read again, it differs")
    key, _, text = sets[-1].partition("=")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return ACCEPTED
    found: object = config.model_dump(mode="json")
    for part in key.strip().split("."):
        found = found[part] if isinstance(found, dict) else found
    if isinstance(value, bool | int | float) and isinstance(found, bool | int | float):
        require(found == value, f"{key} is {found!r}, not {value!r}")
    return RIGHT


_CHANGES = ("flip", "flip=true", "crop=512", "scales=0.5,1", "overlap=0.25", "longest=640")


def _make_protocol(rng: Random) -> Case:
    text = "+".join([rng.choice([*PROTOCOLS]), *rng.sample(_CHANGES, rng.randint(0, 3))])
    if rng.random() < INTACT_SHARE:
        return Case({"text": text.encode()}, intact=True)
    return Case({"text": mutated_text(rng, text).encode("utf-8", "surrogatepass")})


def _read_protocol(case: Case, _: Path) -> str:
    text = case.files["text"].decode("utf-8", "surrogatepass")
    protocol = get_protocol(text)
    require(protocol.describe(), "no description")
    require(all(0 < scale <= 16 for scale in protocol.scales_of(1024, 2048)), "a scale is odd")
    require(0 <= protocol.overlap < 1, "an overlap is odd")
    name, *changes = text.split("+")
    flips = [change for change in changes if change.partition("=")[0] == "flip"]
    if not flips:
        require(protocol.flip == PROTOCOLS[name].flip, "another flip")
    return RIGHT


_DOMAINS = ("camvid:0001TP@val", "gtav", "cityscapes@all", "synthia@train", "acdc:night@val")


def _make_domain(rng: Random) -> Case:
    text = rng.choice(_DOMAINS)
    if rng.random() < INTACT_SHARE:
        return Case({"text": text.encode()}, intact=True)
    return Case({"text": mutated_text(rng, text).encode("utf-8", "surrogatepass")})


def _read_domain(case: Case, _: Path) -> str:
    text = case.files["text"].decode("utf-8", "surrogatepass")
    selection = Selection.parse(text)
    require(str(selection) == text.strip(), f"it is read as {selection}")
    require(Selection.parse(str(selection)) == selection, "written and read again, it differs")
    get_card(selection.dataset)
    return RIGHT


TARGETS = (
    Target("card YAML", _make_card, _read_card, 12),
    Target("study TOML", _make_study, _read_study),
    Target("recipe and --set", _make_recipe, _read_recipe),
    Target("protocol", _make_protocol, _read_protocol, 3),
    Target("domain name", _make_domain, _read_domain, 3),
)
