"""What a room asks of a room above it, which it does not import: asked for by name, found where `dts` says.

Imports go downwards only.  Yet the run-time answers ``tasks="auto"`` by a router, and routers look at run-times; it
builds a base model by the loader of a library, and bridges to libraries make run-times.  So the lower room says in a
protocol what it needs (`dts.nn.router.MakeRouter`, `dts.nn.library.Library`), the upper one has it, and ``dts`` knows
which module that is.  It is imported when first asked for: ``import dts`` costs next to nothing.
"""

from importlib import import_module
from typing import Any

_where: dict[str, str] = {}


def provide(name: str, where: str) -> None:
    """Say where a service is: "package.module", or "package.module:what" for one thing in it."""
    _where[name] = where


def service(name: str) -> Any:
    """The module or thing that was provided by this name."""
    module, _, what = _where[name].partition(":")
    return getattr(import_module(module), what) if what else import_module(module)
