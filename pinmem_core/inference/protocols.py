"""Named inference protocols and changes to them.

The original implementation has three (docs/eval.md). It is not known which of them the paper's
tables use, so every reported metric must name its protocol.
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
"""Protocols by name.

`fast` is the fastest. `photo` also shrinks photos of any camera to about the size of small training
images. The others are the original's: `paper-train` during training, `paper-mapillary` for
Mapillary, `paper-eval` with sliding windows, `paper-pool` with pooling (the original also ran it at
several scales).
"""


def get_protocol(text: str) -> Protocol:
    """Parse a protocol.

    Args:
        text: Name, optionally followed by changed fields of `Protocol`: `+field=value`, or `+field`
            to switch it on. Examples: `paper-pool`, `paper-train+flip`,
            `fast+scales=0.5,1+crop=512`.

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
    """Return the name of a checkpoint's protocol.

    Args:
        config: Content of the checkpoint's `config.json`; its optional `protocol` is a string for
            `get_protocol`.
        otherwise: Name for a checkpoint without a protocol.

    Raises:
        CheckpointError: This version of pinmem does not know the protocol.
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
    """Convert a field's text to the type of its current value."""
    if isinstance(now, tuple):
        return tuple(text.split(","))
    return None if text == "none" else text


def _on(field: str, now: object) -> bool:
    if not isinstance(now, bool):
        raise ConfigError(f"a protocol's '{field}' needs a value.", f"Write {field}=VALUE.")
    return True
