"""Layers that the code of other modules reads: ``F.linear(x, self.l.weight)``, ``self.l.weight[0]``, ``self.l.stride``.

PEFT puts a layer of its own around one with a LoRA.  Called, that adds B A; asked for ``weight`` or ``bias`` it gives
the base's, without a word, and it lacks most other attributes.  A layer whose values are read so is kept whole.

Nothing is run, as nobody knows a model's inputs: the sources of ``forward``, and of what it calls, are followed with
the modules of the model itself in the place of their names.  A condition that the model's own settings decide is
decided, for inference; of all others both ways are followed.
"""

from __future__ import annotations

import ast
import inspect
import operator
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from torch import Tensor, nn

VALUES = frozenset({"weight", "bias"})
OF_ALL = frozenset(dir(nn.Module())) | {"in_features", "out_features"}  # PEFT's layer has them too
WITHOUT_VALUES = frozenset(
    "dtype device shape size ndim dim numel layout is_meta is_cuda is_floating_point requires_grad stride".split()
)
LOOKS = frozenset({"isinstance", "hasattr", "type", "id", "len"})
OF_LIBRARIES = ("torch.nn.modules.module", "transformers.modeling_utils", "transformers.generation")
CONTAINERS = nn.ModuleList | nn.ModuleDict | nn.Sequential
COMPARED: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
Modules = frozenset[nn.Module]
NONE: Modules = frozenset()


@dataclass
class Reads:
    """by: module that is read -> where, "ProphetNetDecoder.forward";  unseen: classes whose source is not at hand."""

    by: dict[nn.Module, str] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)


def reads(model: nn.Module) -> Reads:
    """Which modules of a model others read."""
    look = _Look()
    for module in model.modules():
        if next(module.children(), None) is not None and not isinstance(module, CONTAINERS):
            look.method(module, "forward", {})
            for name in _starts(type(module)):  # type: ignore[arg-type]  # which is of a class, not of its modules
                look.method(module, name, {})
    return look.result


@lru_cache(maxsize=1024)
def _starts(kind: type) -> tuple[str, ...]:
    """What users and ``generate`` call beside ``forward``: ``get_image_features``, ``prepare_inputs_...``."""
    own = [name for one in kind.__mro__ if not one.__module__.startswith(OF_LIBRARIES) for name in vars(one)]
    return tuple(sorted({n for n in own if n.startswith(("prepare_", "_prepare_")) or n.endswith("_features")}))


@lru_cache(maxsize=1024)
def _tree(function: Any) -> ast.FunctionDef | None:
    """The source of a function; None if it has none, or is no function."""
    try:
        found = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    return found if isinstance(found, ast.FunctionDef) else None


def _plain(attribute: Any) -> Any:
    """The function that a class's attribute holds, without decorators that say what they wrap."""
    if isinstance(attribute, property):
        attribute = attribute.fget
    if isinstance(attribute, staticmethod | classmethod):
        attribute = attribute.__func__
    return inspect.unwrap(attribute) if inspect.isfunction(attribute) else None


@dataclass
class _Look:
    result: Reads = field(default_factory=Reads)
    done: set[Any] = field(default_factory=set)

    def method(self, owner: nn.Module, name: str, given: dict[int | str, Modules]) -> None:
        """given: position or name of an argument -> the modules that it is."""
        for kind in type(owner).__mro__:
            if name in vars(kind) and not kind.__module__.startswith(OF_LIBRARIES):
                attribute = vars(kind)[name]
                function = _plain(attribute)
                if function is None:
                    return
                shift = 0 if isinstance(attribute, staticmethod) else 1
                bound: dict[int | str, Modules] = {0: frozenset({owner})} if shift else {}
                for key, value in given.items():
                    bound[key + shift if isinstance(key, int) else key] = value
                tree = self.function(function, bound, owner, f"{kind.__name__}.{name}")
                if tree is None or not any(isinstance(n, ast.Name) and n.id == "super" for n in ast.walk(tree)):
                    return

    def function(
        self, function: Any, given: dict[int | str, Modules], owner: Any, where: str
    ) -> ast.FunctionDef | None:
        tree = _tree(function)
        key = function, owner, frozenset(given.items())
        if tree is None:
            self.result.unseen.add(where)
        elif key not in self.done:
            self.done.add(key)
            names = [one.arg for one in (*tree.args.posonlyargs, *tree.args.args)]
            known = {
                names[k] if isinstance(k, int) else k: found
                for k, found in given.items()
                if isinstance(k, str) or k < len(names)
            }
            _Body(self, function, owner, where, known).follow(tree)
        return tree


@dataclass
class _Body:
    """One function, with the modules that its names stand for.  owner: the module of a method, "self"."""

    look: _Look
    code: Any
    owner: Any
    where: str
    names: dict[str, Modules]

    def follow(self, tree: ast.FunctionDef) -> None:
        nodes = list(self._live(tree, None))
        for _ in range(2):  # a loop's name may be used before it is given
            for node, _ in nodes:
                self._bind(node)
        for node, parent in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                self._attribute(node, parent)
            elif isinstance(node, ast.Call):
                self._call(node)

    def _live(self, node: ast.AST, parent: ast.AST | None) -> Iterator[tuple[ast.AST, ast.AST | None]]:
        yield node, parent
        inner = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.If | ast.IfExp):
            decided = self._decided(node.test)
            if decided is not None:
                kept = node.body if decided else node.orelse
                inner = [*kept] if isinstance(kept, list) else [kept]
        for one in inner:
            yield from self._live(one, node)

    # -- which modules an expression is

    def _bind(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._name(target, self.modules(node.value))
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            self._name(node.target, self.modules(node.value))
        elif isinstance(node, ast.For | ast.comprehension):
            self._name(node.target, self.inside(node.iter))

    def _name(self, target: ast.AST, found: Modules) -> None:
        for node in ast.walk(target) if found else ():
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):  # not the x of x.l = self.l
                self.names[node.id] = self.names.get(node.id, NONE) | found

    def modules(self, node: ast.AST) -> Modules:
        if isinstance(node, ast.Name):
            return self.names.get(node.id, NONE)
        if isinstance(node, ast.Attribute):
            return _those([_attribute(module, node.attr) for module in self.modules(node.value)])
        if isinstance(node, ast.Subscript | ast.Starred):
            return _inside(self.modules(node.value))
        if isinstance(node, ast.IfExp):
            return self.modules(node.body) | self.modules(node.orelse)
        if isinstance(node, ast.BoolOp | ast.Tuple | ast.List):
            values = node.values if isinstance(node, ast.BoolOp) else node.elts
            return frozenset().union(*map(self.modules, values))
        if isinstance(node, ast.Call):
            return self._made(node)
        return NONE

    def inside(self, node: ast.AST) -> Modules:
        """What a loop over an expression gives."""
        return _inside(self.modules(node))

    def _made(self, node: ast.Call) -> Modules:
        """The modules that a call gives: getters, and what goes over several."""
        if isinstance(node.func, ast.Attribute):
            of = self.modules(node.func.value)
            if node.func.attr in ("values", "items", "children", "named_children"):
                return frozenset(child for module in of for child in module.children())
            if node.func.attr in ("get_input_embeddings", "get_output_embeddings"):
                return _those([_given(module, node.func.attr) for module in of])
        elif isinstance(node.func, ast.Name):
            if node.func.id == "getattr" and len(node.args) > 1:
                return _those(
                    [
                        _attribute(m, str(name.value))
                        for m in self.modules(node.args[0])
                        if isinstance(name := node.args[1], ast.Constant)
                    ]
                )
            if node.func.id in ("enumerate", "zip", "reversed", "list", "tuple", "iter", "next", "islice"):
                return frozenset().union(*map(self.inside, node.args))
        return NONE

    # -- what becomes of them

    def _attribute(self, node: ast.Attribute, parent: ast.AST | None) -> None:
        for module in self.modules(node.value):
            if module is self.owner:
                if isinstance(getattr(type(module), node.attr, None), property):
                    self.look.method(module, node.attr, {})
                continue
            if node.attr in VALUES:
                if not _only_looks(parent):
                    self.look.result.by.setdefault(module, self.where)
            elif node.attr not in OF_ALL and node.attr not in module._modules and node.attr not in module._parameters:
                self.look.result.by.setdefault(module, self.where)

    def _call(self, node: ast.Call) -> None:
        given: dict[int | str, Modules] = {i: self.modules(one) for i, one in enumerate(node.args)}
        given |= {one.arg: self.modules(one.value) for one in node.keywords if one.arg}
        given = {key: found for key, found in given.items() if found}
        if isinstance(node.func, ast.Attribute):
            for module in self.modules(node.func.value):
                self.look.method(module, node.func.attr, given)
        elif isinstance(node.func, ast.Name):
            function = getattr(self.code, "__globals__", {}).get(node.func.id)
            if given and inspect.isfunction(function):
                self.look.function(inspect.unwrap(function), given, None, function.__name__)
            elif node.func.id == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                read = ast.Attribute(node.args[0], str(node.args[1].value), ast.Load())
                self._attribute(read, None)
        for module in self.modules(node.func) if given else ():
            self.look.method(module, "forward", given)

    # -- conditions

    def _decided(self, test: ast.AST) -> bool | None:
        try:
            return bool(self._value(test))
        except _Open:
            return None

    def _value(self, node: ast.AST) -> Any:
        """Raises _Open for what the model's settings do not say."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return [self._value(one) for one in node.elts]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self._value(node.operand)
        if isinstance(node, ast.BoolOp):
            return self._joined(node)
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARED:
            left, right = self._value(node.left), self._value(node.comparators[0])
            return _tried(lambda: COMPARED[type(node.ops[0])](left, right))
        if isinstance(node, ast.Attribute):
            return self._setting(node)
        raise _Open

    def _joined(self, node: ast.BoolOp) -> bool:
        ends, unknown = isinstance(node.op, ast.Or), False
        for one in node.values:
            decided = self._decided(one)
            if decided is ends:
                return ends
            unknown |= decided is None
        if unknown:
            raise _Open
        return not ends

    def _setting(self, node: ast.Attribute) -> Any:
        """An attribute of the module; privates, such as which attention is meant, are the loader's to choose."""
        path: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            path.insert(0, inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name) or self.names.get(inner.id) != frozenset({self.owner}):
            raise _Open
        if path == ["training"]:
            return False
        value = self.owner
        for name in path:
            if name.startswith("_"):
                raise _Open
            value = _tried(partial(getattr, value, name))
            if isinstance(value, Tensor):  # of which device and dtype are the loader's too
                raise _Open
        if value is None or isinstance(value, bool | int | float | str | list | tuple | nn.Module):
            return value
        raise _Open


class _Open(Exception):
    """A condition that nothing here decides."""


def _tried(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception:  # whatever a model's properties raise without values
        raise _Open from None


def _attribute(module: nn.Module, name: str) -> Any:
    try:
        return getattr(module, name)
    except Exception:  # as in `_tried`
        return None


def _given(module: nn.Module, getter: str) -> Any:
    try:
        return getattr(module, getter)()
    except Exception:  # transformers' raises for a model without
        return None


def _those(values: list[Any]) -> Modules:
    """The modules among values, and in their lists."""
    found: set[nn.Module] = set()
    for value in values:
        several = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        found |= {one for one in several if isinstance(one, nn.Module)}
    return frozenset(found)


def _inside(found: Modules) -> Modules:
    """Containers' modules; of any other the module itself."""
    return frozenset(one for m in found for one in (m.children() if isinstance(m, CONTAINERS) else (m,)))


def _only_looks(parent: ast.AST | None) -> bool:
    """Does it ask of a tensor what base and fine-tune have in common?"""
    if isinstance(parent, ast.Attribute):
        return parent.attr in WITHOUT_VALUES
    if isinstance(parent, ast.Compare):
        return all(isinstance(op, ast.Is | ast.IsNot) for op in parent.ops)
    return isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id in LOOKS
