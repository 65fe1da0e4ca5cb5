"""What lower rooms ask of upper ones is there, and is what their protocols say."""

import inspect

import pytest

from dts import services
from dts.nn.library import Library, library
from dts.nn.router import MakeRouter
from dts.services import provide, service


def test_every_service_is_there():
    assert {name for name in services._where} == {"library", "router", "within"}
    assert callable(service("router")) and library() is service("library")


def parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_services_take_what_their_protocols_say():
    for name in ("load_base", "update_config"):
        assert parameters(getattr(library(), name)) == parameters(getattr(Library, name))
    asked = parameters(MakeRouter.__call__)
    assert parameters(service("router"))[: len(asked)] == asked


def test_another_one_may_be_provided(monkeypatch):
    monkeypatch.setattr(services, "_where", dict(services._where))
    provide("router", "collections:Counter")
    assert service("router")("aab") == {"a": 2, "b": 1}
    with pytest.raises(KeyError):
        service("nothing")
