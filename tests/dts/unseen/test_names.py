import pytest

from dts.unseen.names import is_opaque, readable


@pytest.mark.parametrize("name", ["0", "class_3", "LABEL_2", "Class 4", "", "-", "c1", "l2", "category-10", "3.5"])
def test_opaque(name):
    assert is_opaque(name)


@pytest.mark.parametrize("name", ["polka dotted", "sports", "B-52 bomber", "label maker", "F-16", "ca", "是"])
def test_meaningful(name):
    assert not is_opaque(name)


@pytest.mark.parametrize(
    "name, text",
    [
        ("cardLost", "card lost"),
        ("polka_dotted", "polka dotted"),
        ("what-is/this", "what is this"),
        ("NASA", "nasa"),
        ("  two  words ", "two words"),
        ("ADE.fact", "ade fact"),
    ],
)
def test_readable(name, text):
    assert readable(name) == text
