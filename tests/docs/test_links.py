"""Every link of every page leads somewhere, also without a network."""

import pytest

from tests.docs.pages import PAGES, anchors, links, name_of


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)} links to {link}: {sorted(anchors(target))}"


def test_there_are_pages():
    names = {name_of(page) for page in PAGES}
    assert {"README.md", "docs/guide.md", "docs/architecture.md", "examples/README.md"} <= names
