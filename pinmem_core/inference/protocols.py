"""The protocols that have names, and changes to them.

The original has three (docs/eval.md); which of them made the paper's tables is not known, so every
figure must say which made it.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pinmem_core.errors import CheckpointError, ConfigError, unknown_name
from pinmem_core.inference.protocol import Protocol

PROTOCOLS: dict[str, Protocol] = {
    "fast": Protocol(crop="largest", overlap=1 / 8),
    "photo": Protocol(crop="largest", overlap=1 / 8, longest=640),
    "paper-train": Protocol(),
    "paper-mapillary": Protocol(view="mapillary-original"),
    "paper-eval": Protocol(crop=768, flip=True, count="original"),
    "paper-pool": Protocol(flip=True, fuse="probabilities", resample="bicubic"),
}
"""The quickest; the same for photos of any camera, seen about as large as small training images;
and the original's: during training, the same with what it shows of Mapillary's images, sliding, and
pooling (which it also ran at several scales)."""


def get_protocol(text: str) -> Protocol:
    """Return the protocol that a text means.

    Args:
        text: A name, and perhaps changes: fields of `Protocol` with their values, or alone where
            they are switched on. `paper-pool`, `paper-train+flip`, `fast+scales=0.5,1+crop=512`.

    Raises:
        ConfigError: The name or a field does not exist, or a value is not allowed.
    """
    name, *changes = text.split("+")
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    fields = asdict(PROTOCOLS[name])
    for change in changes:
        field, equals, value = change.partition("=")
        if field not in fields:
            raise unknown_name("field of a protocol", field, fields)
        usual = getattr(PROTOCOLS[name], field)
        fields[field] = _value(value, usual) if equals else _on(field, usual)
    try:
        return TypeAdapter(Protocol).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise ConfigError(f"protocol '{text}': {first['loc'][0]}: {reason}.") from None


def protocol_of(config: Mapping[str, Any], otherwise: str) -> str:
    """Return the name of the protocol that a checkpoint is made for.

    Args:
        config: The checkpoint's `config.json`; its `protocol` is a text that `get_protocol` takes.
        otherwise: The answer for a checkpoint that names none.

    Raises:
        CheckpointError: This pinmem does not know the protocol.
    """
    name = config.get("protocol", otherwise)
    try:
        if not isinstance(name, str):
            raise ConfigError("the name is not a text.")
        get_protocol(name)
    except ConfigError as error:
        raise CheckpointError(
            f"the checkpoint asks for the protocol {name!r}: {error.message}",
            "Name another one with --protocol.",
        ) from None
    return name


def _value(text: str, now: object) -> object:
    """Return what a text means as a field that now has another value."""
    if isinstance(now, tuple):
        return tuple(text.split(","))
    return None if text == "none" else text


def _on(field: str, now: object) -> bool:
    if not isinstance(now, bool):
        raise ConfigError(f"a protocol's '{field}' needs a value.", f"Write {field}=VALUE.")
    return True
