"""What is where in a model, looked for once: loading a task asks for it again and again, and it hardly ever changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from operator import attrgetter, is_

from torch import nn

from dts.nn.layers import Layer, base_class, known_kinds, read_by
from dts.nn.parallel.sharded import gathered
from dts.sites import Site, Target, is_distributed, sites, walked
from dts.sites.transformers import renamer

STORES = [attrgetter(store) for store in ("_modules", "_parameters", "_buffers")]


class Survey:
    """Of a model as it is now; right as long as `holds`.

    modules: `walked`, in its order;  sites: the model's;  layer_classes: modules, their classes and kinds of pieces ->
    the layers that they become;  placed: names of entries, and in their base, of the last task, and where they belong:
    the target of each, and every place that one changes.
    """

    def __init__(self, model: nn.Module):
        self.model, self.modules, self.sites = model, walked(model), sites(model)
        self.layer_classes: dict[tuple, type[Layer]] = {}
        self.placed: tuple[list[tuple[str, str | None]], dict[str, Target], list[tuple[str, Target]]] | None = None
        self._targets: dict[str, Target] = {}
        self._kinds = known_kinds()
        self._found = [module for _, module in self.modules]
        self._classes = list(map(base_class, self._found))
        self._stores = [list(map(store, self._found)) for store in STORES]
        self._sizes = [list(map(len, stores)) for stores in self._stores]
        held = [(one, key, value) for stores in self._stores for one in stores for key, value in one.items()]
        self._dicts, self._keys, self._values = ([item[i] for item in held] for i in range(3))

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copy of the model is another model

    @classmethod
    def of(cls, model: nn.Module, before: Survey | None) -> Survey:
        return before if before is not None and before.holds(model) else cls(model)

    def holds(self, model: nn.Module) -> bool:
        """Whether every module, parameter and buffer is where it was: a tenth of a millisecond for some hundreds."""
        return (
            model is self.model
            and self._kinds == known_kinds()
            and all(
                all(map(is_, map(store, self._found), stores)) and list(map(len, stores)) == sizes
                for store, stores, sizes in zip(STORES, self._stores, self._sizes)
            )
            and all(map(is_, map(dict.get, self._dicts, self._keys), self._values))
            and all(map(is_, map(base_class, self._found), self._classes))
        )

    @cached_property
    def _rename(self) -> Callable[[str], Target]:
        return renamer(self.model, self.sites)

    def rename(self, name: str) -> Target:
        """How the model's loader names a tensor of a checkpoint."""
        found = self._targets.get(name)
        if found is None:
            found = self._targets[name] = self._rename(name)
        return found

    @cached_property
    def gathered(self) -> set[int]:
        """Ids of the modules whose parameters are put together for each forward; raises ValueError, see there."""
        return gathered(self.model)

    @cached_property
    def split(self) -> bool:
        """Whether some parameter lies on several processes."""
        return any(map(is_distributed, self._values))

    @cached_property
    def readers(self) -> list[tuple[str, nn.Module, list[nn.Module]]]:
        """Modules, with their names, that read the weights of children past their forward, and these."""
        found = []
        for name, module in self.modules:
            read = [module._modules.get(child) for child in read_by(module)] if module._modules else []
            if inner := [child for child in read if child is not None]:
                found.append((name, module, inner))
        return found

    @cached_property
    def uses(self) -> Counter[int]:
        """Id of a tensor -> in how many places it is."""
        return Counter({(id(site.module), site.parameter): id(site.tensor) for site in self.sites.values()}.values())

    @cached_property
    def shared(self) -> dict[str, Site]:
        """Those of the sites whose tensors are in other places, too, or under another name."""
        names = Counter(id(site.tensor) for site in self.sites.values())
        return {name: site for name, site in self.sites.items() if names[id(site.tensor)] > 1}
