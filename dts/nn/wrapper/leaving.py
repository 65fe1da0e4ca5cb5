"""What leaves a `DTSModel`: a plain model with one task written into it, in memory, on disk or on the hub."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from dts.nn.fast_path import fast_path_again
from dts.nn.heads import refuse_heads
from dts.nn.layers import release
from dts.nn.library import library
from dts.nn.merge import merge
from dts.nn.parallel.sharded import refuse_parallel
from dts.nn.replaced import Places
from dts.nn.routing import RoutingState
from dts.nn.saving import What, save_pretrained
from dts.nn.selection import Selection, names_in
from dts.nn.views import plain
from dts.nn.within import unwatch
from dts.nn.wrapper.answers import Answers


class Leaving(Answers):
    """Merges and writes."""

    def merge_and_unload(self, task: Selection = None, dequantise: bool = False) -> nn.Module:
        """The plain base module with one task (or mixture; None: the base) written into its weights.

        dequantise: of a base with quantised layers make a floating-point model, into which a task can be written;
        without it, a task that changes quantised weights is refused with ValueError.
        Of a transformers model the ``config`` has the task's labels and sizes then.  This model is empty afterwards.
        Raises ValueError for a mixture of tasks whose heads cannot be added, and leaves this model as it was.
        """
        with self._at_hand([task]), nullcontext() if self._shelf is None else self._shelf.residents.still():
            merged = self._merge_and_unload(task, dequantise)
            if self._shelf is not None:
                self._shelf.clear()
        self._shelf = self.plan = None
        return merged

    def _merge_and_unload(self, task: Selection, dequantise: bool) -> nn.Module:
        refuse_parallel(self.model, "merge_and_unload()")
        self._refuse_altered()
        mixture = self._loaded.mixture(task)
        configs = [self._loaded[name].model_config for name in names_in(task)]
        config = configs[0] if len(configs) == 1 else None
        refuse_heads(self._layers, mixture, self._loaded.names)
        self._refuse_replaced([mixture])
        routing = RoutingState(self._state.device)
        routing.set([mixture])
        resized = merge(self.model, self._layers, routing, dequantise)
        unwatch(plain(self.model))
        for module in self.model.modules():
            release(module)
        library().update_config(self.model, resized, config or {})
        fast_path_again(self.model)
        for found in (self._loaded, self._layers, self._known_calls.found, self._views):
            found.clear()
        self._places, self._unused, self._state.watch = Places(self), [], None
        self._survey = None
        self._base = None  # these weights are no checkpoint's
        self._state.set([{}])
        self._current, self._last = [None], None
        return self.model

    def save_pretrained(self, folder: str | Path, what: What = "model", **options: Any) -> Any:
        """Write the task that is set as a full model, with its labels and sizes; the base where none is set.

        what: "model", this;  "base", the base whatever is set;  "adapters", every loaded task's adapter, in a folder of
        its name.  options: of the library's ``save_pretrained``; of adapters ``overwrite``.
        A task is written into a copy, so the model is twice in memory meanwhile (``dts apply`` needs one tensor).
        Raises ValueError where several tasks are set.
        """
        if what == "adapters":
            self._refuse_on_disk('what="adapters"')
        else:
            self._refuse_altered()
        return save_pretrained(self.model, self._loaded, self._state.mixtures, self._merged_copy, folder, what, options)

    def _merged_copy(self, mixture: dict[str, float]) -> nn.Module:
        refuse_parallel(self.model, "writing a task as a full model")  # which no copy can be made of
        return plain(copy.deepcopy(self).merge_and_unload(mixture))

    def push_to_hub(self, *args: Any, **options: Any) -> Any:
        """What `save_pretrained` writes, by the library's own ``push_to_hub``."""
        library_class: Any = type(plain(self.model))
        return library_class.push_to_hub(self, *args, **options)
