"""A sample: one element of every G of a matrix, G times as large, at places that follow from a seed (`Samples`).

    .samples, .samples1, ...    uint8 [rows, ceil(elements / 4)]: codes, see `dts_kernels.samples`

Fragment: [{"stride", "seed", "scale", "share"}, ...], one a sample: a compressed matrix has one, of a mixture one a
member; without "share" where all groups of columns have an element.

With T the matrix that is sampled, E[sample] = T: an error that is noise alone and that other rows do not share.  Values
are rounded to the codes, with one scale that keeps their norm.

Some of a sample's elements are a sample too (`thinned`), as much larger as there are fewer of them.
"""

import hashlib
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor

from dts import values
from dts.sums import dot, energy
from dts_kernels.layout import PackedFactors, pack, packed_width
from dts_kernels.reference import decode as decoded_codes
from dts_kernels.reference import reconstruct
from dts_kernels.samples import ALL, SHARES, STRIDES, Samples, columns, dense, elements_of

from ..codes import KEPT, LARGEST, RMS, THRESHOLD
from ..errors import Undecodable
from .kind import Load, PartKind, packed_bits_end

ROWS_AT_ONCE = 1 << 23  # elements of what is sampled that are held at a time
REFINEMENTS = 6  # of the scale and the codes in turn
LONGEST = 1.0, 2**32 - 1  # scale (a float32, as all are) and seed of a planned sample: a row takes no fewer bytes

_fragment = values.list_of(
    values.with_or_without(
        "share",
        lambda value: values.list_of(values.count)(value) and tuple(value) in SHARES[1:],
        stride=lambda value: values.count(value) and value in STRIDES,
        seed=lambda value: values.count(value) and value < 1 << 32,
        scale=values.real,
    )
)


class Sample(PartKind[Samples]):
    name, data, key, version, alone, ranked = "sample", Samples, "samples", 3, False, False

    def tensors(self, place: int, data: Samples) -> dict[str, Tensor]:
        return {suffix(place): data.codes}

    def fragment(self, parts: list[Samples]) -> list:
        return [
            {"stride": data.stride, "seed": data.seed, "scale": data.scale}
            | ({} if data.share == ALL else {"share": list(data.share)})
            for data in parts
        ]

    def fits(self, fragment) -> bool:
        return _fragment(fragment)

    def decode(self, name: str, fragment, shape: tuple[int, int], load: Load) -> list[Samples]:
        return [self._decode(name, place, about, shape, load) for place, about in enumerate(fragment)]

    def _decode(self, name: str, place: int, about: dict, shape: tuple[int, int], load: Load) -> Samples:
        codes = load(suffix(place))
        if codes is None:
            raise Undecodable(f"{name}: its {suffix(place)} is missing")
        try:
            share = tuple(about.get("share", ALL))
            data = Samples(codes, about["scale"], about["stride"], about["seed"], shape, share)
        except ValueError as error:
            raise Undecodable(f"{name}: {error}") from None
        if not packed_bits_end(codes, data.elements):
            raise Undecodable(f"{name}.{suffix(place)}: bits beyond its {data.elements} codes are set")
        return data

    def shape(self, data: Samples) -> tuple[int, int]:
        return data.shape

    def dense(self, data: Samples, dtype: torch.dtype = torch.float32) -> Tensor:
        return dense(data, dtype)

    def largest(self, data: Samples) -> float:
        return LARGEST * abs(data.scale)

    def times(self, data: Samples, factor: float) -> Samples:
        return data.times(factor)


def suffix(place: int) -> str:
    return f"samples{place or ''}"


def encode(delta: Tensor, packed: PackedFactors, stride: int, seed: int) -> tuple[Samples, float]:
    """A sample of what components leave of delta, and the squared relative error of both together.

    delta: float32 [m, n], not zero, elements of order 1;  stride: one element of how many is kept.
    """
    m, n = delta.shape
    own = seed_of(packed, seed) if packed.rank else seed_of_values(delta, seed)
    at = columns((m, n), stride, own, delta.device)
    real = at < n
    kept, lost = missing(delta, packed, at.clamp_(max=n - 1))
    kept *= real
    codes, scale = rounded(kept, real)
    sample = Samples(pack(codes), scale, stride, own, (m, n)).times(stride)
    noisy = decoded_codes(sample.codes, sample.elements) * sample.scale * real
    noise = lost + energy(noisy) - 2 * dot(noisy, kept)
    return sample, noise / energy(delta)


def thinned(data: Samples, share: tuple[int, int], was: PackedFactors, now: PackedFactors) -> Samples:
    """A sample, at a ``share`` of the groups no larger than data's, of what ``now`` leaves of a matrix of which data is
    a sample of what ``was`` leaves.

    What the components differ by is known at every element that stays, and the rest as it was rounded to codes.
    """
    (m, n), kept = data.shape, []
    at = columns(data.shape, data.stride, data.seed, data.codes.device, share=share)
    real = at < n
    for rows in torch.arange(m, device=at.device).split(max(1, ROWS_AT_ONCE // max(1, n))):
        left = dense(data, rows=rows) / data.of_how_many
        if now is not was:
            for packed, sign in ((was, 1), (now, -1)):
                left += sign * reconstruct(PackedFactors(packed.u[rows], packed.v, packed.sigma, packed.levels))
        kept.append(torch.gather(left, 1, at[rows].clamp(max=n - 1)))
    codes, scale = rounded(torch.cat(kept) * real, real)
    thin = Samples(pack(codes), scale, data.stride, data.seed, data.shape, share)
    return thin.times(thin.of_how_many)


def nbytes_at(shape: tuple[int, int], stride: int, share: tuple[int, int]) -> int:
    """Bytes of a sample of a matrix [m, n]."""
    return shape[0] * packed_width(elements_of(shape[1], stride, share))


def seed_of(packed: PackedFactors, seed: int) -> int:
    """Where the sample beside these components is taken: equal places in two layers would make their noise alike."""
    return _seed(packed.sigma.cpu(), seed)


def seed_of_values(delta: Tensor, seed: int) -> int:
    """The same where there are no components: from the matrix's first row and column."""
    return _seed(torch.cat([delta[0], delta[:, 0]]).cpu(), seed)


def _seed(values: Tensor, seed: int) -> int:
    content = f"{seed}".encode() + values.contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "little")


def missing(delta: Tensor, packed: PackedFactors, at: Tensor) -> tuple[Tensor, float]:
    """What the components leave of delta: its elements at columns ``at`` [m, count], and the energy of all of it.

    Made some rows at a time: never held whole.
    """
    kept, lost = delta.new_empty(at.shape), 0.0
    rows = max(1, ROWS_AT_ONCE // max(1, delta.shape[1]))
    for first in range(0, len(delta), rows):
        here = slice(first, first + rows)
        left = delta[here] - reconstruct(PackedFactors(packed.u[here], packed.v, packed.sigma, packed.levels))
        torch.gather(left, 1, at[here], out=kept[here])
        lost += energy(left)
    return kept, lost


def rounded(kept: Tensor, real: Tensor) -> tuple[Tensor, float]:
    """(codes uint8, the scale that keeps the norm) of elements; those not ``real`` are zero and do not count."""
    magnitude = kept.abs()
    scale = (energy(magnitude) / int(real.sum())) ** 0.5 / RMS
    for _ in range(REFINEMENTS):
        large = magnitude > THRESHOLD * scale
        codes = (1 + 3 * large.float()) * real
        scale = dot(magnitude, codes) / energy(codes)
    return ((kept < 0) * 2 + large).byte(), (energy(kept) / energy(codes)) ** 0.5


@overload
def expected_error(left: float, stride: int | None) -> float: ...
@overload
def expected_error(left: Tensor, stride: int | None) -> Tensor: ...


def expected_error(left, stride):
    """Squared relative error of components and sample, where the components leave ``left`` (float or tensor).

    With q what an element t is rounded to, kept once in G = ``stride`` (None: no sample):
    E (G q - t)^2 / G + (1 - 1 / G) t^2, summed, is (1 + G - 2 sqrt(KEPT)) || T ||^2.
    """
    return left if stride is None else left * (1 + stride - 2 * KEPT**0.5)


def planned(stride: int, shape: tuple[int, int]) -> Samples:
    """A sample without content: right in every shape, with the longest numbers there are."""
    codes = torch.zeros((), dtype=torch.uint8).expand(shape[0], packed_width(elements_of(shape[1], stride)))
    return Samples(codes, LONGEST[0], stride, LONGEST[1], shape)


def planned_share(data: Samples, share: tuple[int, int]) -> Samples:
    """`thinned` without content."""
    width = packed_width(elements_of(data.shape[1], data.stride, share))
    return replace(data, codes=torch.zeros((), dtype=torch.uint8).expand(data.shape[0], width), share=share)


KIND = Sample()
