"""Adapters: modules inserted into a backbone. They are part of the architecture of a checkpoint.

To add one, add a module here with a dict `ADAPTERS` from names to subclasses of `Adapter`.
"""

from collections.abc import Mapping
from typing import Any

from pinmem_core.models.adapters.base import Adapter
from pinmem_core.overrides import validated
from pinmem_core.registry import Registry

adapters: Registry[type[Adapter]] = Registry("adapter", __name__, "ADAPTERS", Adapter)


def build_adapters(settings: Mapping[str, Mapping[str, Any]]) -> list[Adapter]:
    """Return adapters with settings, in the order of `settings`.

    Args:
        settings: Settings of each adapter, by its name.

    Raises:
        ConfigError: An adapter does not exist, or a setting is unknown or not allowed.
    """
    return [
        validated(adapters.get(name), values, f"model.adapters.{name}")
        for name, values in settings.items()
    ]
