"""What a merge did with every tensor of every model, and whether it did anything."""

import torch
from torch import Tensor

from dts.adapter.account import Account
from dts.adapter.errors import NoEffect
from dts.checkpoint import Checkpoint
from dts.checkpoint.errors import first
from dts.sites.configs import OtherConfig, otherwise
from dts.warn import warn

from .sources import Sources

ONLY = "only this model has it: not merged"
LEFT = "models differ here, and the method gives the base's"


class NotMerged(UserWarning):
    """Tensors of the models that the merged model does not have."""


class LeftAtBase(UserWarning):
    """Tensors in which models differ from the base and the merged model does not."""


class Outcome:
    """Collected while a model is merged, tensor by tensor.

    differ: reference name -> which of the models differ from the base there;  changed: whether the result does.
    """

    def __init__(self, sources: Sources):
        self.sources = sources
        self.differ: dict[str, list[bool]] = {}
        self.changed: dict[str, bool] = {}

    def compare(self, name: str, base: Tensor, result: Tensor) -> None:
        self.changed[name] = not torch.equal(base, result)

    def account(self, method: str) -> Account:
        """Raises NoEffect for a model that equals the base, and if no tensor came out changed."""
        sources = self.sources
        if sources.base is not None:
            idle = [
                m.source
                for i, m in enumerate(sources.models)
                if not any(row[i] for row in self.differ.values()) and not self._adds(i)
            ]
            if idle:
                raise NoEffect(
                    f"{', '.join(idle)} does not differ from the base {sources.base.source} in any "
                    "tensor that is merged: leave it out, or give another base"
                )
            if not any(self.changed.values()) and not sources.added:
                differ = sum(map(any, self.differ.values()))
                raise NoEffect(
                    f"merging by {method} gives the base itself: {differ} tensors of the models differ from "
                    "it and none came out changed; look at the method's options "
                    "(weights or a scale of 0, a density too small)"
                )
        elif self.changed and not any(map(any, self.differ.values())):
            raise NoEffect("the models to merge are zero everywhere")
        account = Account()
        for i, (model, pairing) in enumerate(zip(sources.models, sources.pairings)):
            self._of_model(account, i, model, pairing)
        self._of_reference(account)
        self._warn(account, method)
        return account

    def _warn(self, account: Account, method: str) -> None:
        """Of tensors that the merged model has not (heads of one model, what only some have), or has as the base's."""
        gone = [
            f"{fate.name} ({fate.model})"
            for fate in account.fates
            if fate.what == "skipped" and (fate.why == ONLY if fate.model != "merged" else True)
        ]
        if gone:
            warn(f"{len(gone)} tensors are not in the merged model: {first(gone)}", NotMerged)
        left = [fate.name for fate in account.of("merged", "equal") if fate.why == LEFT]
        if left:
            which = f"{len(left)} tensors at the base in which models differ from it: {first(left)}"
            warn(f"{method} leaves {which}", LeftAtBase)
        for model in self.sources.models:
            if how := otherwise(self.sources.reference.config, model.config):
                kept = self.sources.reference.source
                warn(
                    f"{model.source} does not compute as {kept}, whose config the merged model has: {how}", OtherConfig
                )

    def _adds(self, model: int) -> bool:
        return any(model == i for members in self.sources.added.values() for i, _ in members)

    def _of_model(self, account: Account, i: int, model: Checkpoint, pairing) -> None:
        label = label_of(self.sources, i)
        for name, pair in pairing.pairs.items():
            file_name = pairing.saved_as.get(name, name)
            other = pair.base_name if pair.base_name not in (None, file_name) else None
            if pair.tied_to:
                what, why = "tied", f"the same tensor as {pair.tied_to}"
            elif pair.base_name is None:
                what, why = "skipped", ONLY
            elif pair.base_name in self.sources.left:
                what, why = "skipped", self.sources.left[pair.base_name]
            elif pair.base_name in self.differ:
                what, why = ("changed" if self.differ[pair.base_name][i] else "equal"), None
                if pair.added_rows:
                    what, why = "changed", f"{pair.added_rows} new rows kept"
            else:
                continue
            account.add(file_name, label, what, None, other, why)
        account.complete(label, [pairing.saved_as.get(name, name) for name in model.names])

    def _of_reference(self, account: Account) -> None:
        sources, written = self.sources, set(self.sources.written())
        for name in sources.reference.names:
            if name in sources.reference.tied:
                account.add(name, "merged", "tied", why=f"the same tensor as {sources.reference.tied[name]}")
            elif name in sources.left:
                what = "equal" if name in written else "skipped"
                account.add(name, "merged", what, why=f"not merged: {sources.left[name]}")
            elif name in self.differ:
                changed = self.changed.get(name) or name in sources.added
                left = not changed and any(self.differ[name]) and sources.base is not None
                account.add(name, "merged", "changed" if changed else "equal", why=LEFT if left else None)
        account.complete("merged", sources.reference.names)


def label_of(sources: Sources, i: int) -> str:
    """A model's source, numbered where several have the same."""
    source = sources.models[i].source
    return source if sum(m.source == source for m in sources.models) == 1 else f"{source} {i + 1}"
