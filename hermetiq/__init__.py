"""hermetiq: ship a chat model quantized, and prove that it is still the same chat model.

What a script needs stands here: `open`, `inspect`, `export`, `verify`, `publish`, the recipe of a release, and the
errors. All but the errors are loaded when they are first used, so that the command line answers `--help` without
torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from hermetiq.errors import CheckFailed, Finding, HermetiqError, Refusal

if TYPE_CHECKING:
    from hermetiq.api.export import export, prepare_export
    from hermetiq.api.inspect import inspect
    from hermetiq.api.publish import prepare_release, publish
    from hermetiq.api.verify import verify
    from hermetiq.checkpoint import open_checkpoint as open
    from hermetiq.release_recipe import ReleaseRecipe

__all__ = [
    "CheckFailed",
    "Finding",
    "HermetiqError",
    "Refusal",
    "ReleaseRecipe",
    "export",
    "inspect",
    "open",
    "prepare_export",
    "prepare_release",
    "publish",
    "verify",
]
__version__ = "0.1.0"

_PLACES: Final = {
    "open": ("hermetiq.checkpoint", "open_checkpoint"),
    "inspect": ("hermetiq.api.inspect", "inspect"),
    "export": ("hermetiq.api.export", "export"),
    "prepare_export": ("hermetiq.api.export", "prepare_export"),
    "verify": ("hermetiq.api.verify", "verify"),
    "publish": ("hermetiq.api.publish", "publish"),
    "prepare_release": ("hermetiq.api.publish", "prepare_release"),
    "ReleaseRecipe": ("hermetiq.release_recipe", "ReleaseRecipe"),
}
"""Module and name of what is loaded on first use."""


class _Door(ModuleType):
    """The package as a module whose functions come when they are asked for.

    Two of them share their name with a folder. Python sets a folder's module as an attribute of the package whenever
    anything in it is imported, and `hermetiq.verify(…)` would then call a module; so that attribute is not set.
    """

    def __getattr__(self, name: str) -> Any:
        """Load what has not been asked for yet."""
        if name not in _PLACES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        module, there = _PLACES[name]
        found = self.__dict__[name] = getattr(import_module(module), there)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_PLACES})


sys.modules[__name__].__class__ = _Door
