"""How the plots look: every method has a name and a look of its own, which colour-blind people see too."""

import itertools

import numpy as np

from benchmarks.quality.peers import PEERS
from benchmarks.quality.style import FAMILIES, OURS, family, label, style

# linear sRGB as seen without one kind of cones: Machado, Oliveira and Fernandes 2009, severity 1
SEEN = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, seen) -> np.ndarray:
    """CIE L*a*b* of "#RRGGBB"."""
    coded = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.asarray(seen) @ linear, 0, 1) / XYZ.sum(1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_peer_has_a_name_and_a_family():
    assert all(family(name) != "this project" and not label(name).startswith("ours") for name in PEERS)
    assert set(PEERS) == {name for _, methods in FAMILIES.values() for name in methods}
    assert len({label(name) for name in PEERS}) == len(PEERS)


def test_no_two_methods_look_the_same():
    looks = [tuple(str(style(name, [])[key]) for key in ("color", "linestyle", "marker")) for name in PEERS]
    assert len(set(looks)) == len(PEERS)


def test_colours_can_be_told_apart_without_any_one_kind_of_cones():
    colours = {*OURS, *(colour for colour, _ in FAMILIES.values())}
    for who, seen in SEEN.items():
        for one, other in itertools.combinations(sorted(colours), 2):
            assert np.linalg.norm(lab(one, seen) - lab(other, seen)) > 12, (who, one, other)
