"""What the site is made with."""

import importlib.util
from types import SimpleNamespace

import pytest

from tests.docs.pages import ROOT


def tool(name: str):
    pytest.importorskip("mkdocstrings", reason="needs the extra `docs`")
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_with_what_they_are_become_a_list():
    text = "Does.\n\nx: [rows, n]; y: the same\n    or None\nout: a folder\n\n    y = x W^T\n\nReturns y: no item"
    listed = "Does.\n\n- x: [rows, n]; y: the same\n  or None\n- out: a folder\n\n    y = x W^T\n\nReturns y: no item"
    assert tool("docstrings").with_lists(text) == listed


def test_links_of_the_repository_become_links_of_the_site():
    pages = tool("pages")
    files = [SimpleNamespace(src_uri=name) for name in ("guide.md", "index.md", "security.md")]
    turn = lambda page, text: pages.on_page_markdown(  # noqa: E731
        text, SimpleNamespace(file=SimpleNamespace(src_uri=page)), None, files
    )
    assert turn("index.md", "[a](docs/guide.md#x) [b](https://c)") == "[a](guide.md#x) [b](https://c)"
    assert turn("guide.md", "[s](../SECURITY.md) [code](../dts/sums.py)") == "[s](security.md) code"
    with pytest.raises(Exception, match=r"guide.md: no file ../nothing.md"):
        turn("guide.md", "[x](../nothing.md)")
