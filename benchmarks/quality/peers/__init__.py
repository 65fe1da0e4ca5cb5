"""Other ways to store a fine-tune's difference, plainly, with exact bytes, for comparison at equal size.

Every method takes the deltas of the same matrices of all tasks and gives back, for each task, the reconstructed
deltas and what they cost.  Biases, norms and heads are not part of it: they stay exact for every method.

A method with a size to choose takes `fraction`, the largest share of the deltas' fp32 bytes it may use, and spends as
much of it as its own rules allow; the others have the size they have.  Bytes are payload on disk: codes, scales, and
positions (Rice-coded gaps or a bitmap, whichever is smaller).  `published_bits` counts as the method's paper does.
Two gifts to the peers: file headers are not counted, and a mask that a seed can regenerate costs nothing.
"""

from __future__ import annotations

from benchmarks.quality.peers.common import Deltas, Encoded, Peer, fp32_bits, mask_bits, rice_bits_an_element
from benchmarks.quality.peers.dropped import dare, drop_4bit, t_switch, ultradelta
from benchmarks.quality.peers.impart import impart, impart_qt
from benchmarks.quality.peers.low_rank import delta_come, low_rank, plain_svd, tsv_compress
from benchmarks.quality.peers.masks import emr, tall_mask
from benchmarks.quality.peers.prinmix import prinmix
from benchmarks.quality.peers.quantised import bitdelta, rtvq, tvq
from benchmarks.quality.peers.rounding import grouped, uniform, unscaled

SIZES = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04)  # of fp32
ABLATIONS = (0.005, 0.02)
PEERS: dict[str, Peer] = {
    "dts paper": Peer(low_rank(lambda x: grouped(x, 4), 2, 3, 256), SIZES, "arXiv 2512.01461"),
    "dts 2 groups": Peer(low_rank(lambda x: grouped(x, 2), 1, 1, 128), ABLATIONS, "its ablation"),
    "dts 8 groups": Peer(low_rank(lambda x: grouped(x, 8), 3, 3, 512), ABLATIONS, "its ablation"),
    "dts no scaling": Peer(low_rank(unscaled, 1, 1, 0), ABLATIONS, "its ablation"),
    "svd fp16": Peer(low_rank(lambda x: x.half().float(), 16, 16, 0), SIZES, "truncated SVD"),
    "svd 4 bit": Peer(plain_svd(4), SIZES, "truncated SVD, groups of 128"),
    "svd 8 bit": Peer(plain_svd(8), SIZES, "truncated SVD, groups of 128"),
    "delta-come": Peer(delta_come, SIZES, "arXiv 2406.08903"),
    "prinmix": Peer(prinmix, SIZES, "arXiv 2506.11087"),
    "impart": Peer(impart, SIZES, "arXiv 2504.13237"),
    "impart-qt": Peer(impart_qt, SIZES, "arXiv 2504.13237"),
    "dare": Peer(dare, SIZES, "arXiv 2311.03099"),
    "drop 4 bit": Peer(drop_4bit, SIZES, "arXiv 2505.13563, core"),
    "ultradelta": Peer(ultradelta, SIZES, "arXiv 2505.13563", whole_suite=True),
    "t-switch": Peer(t_switch, SIZES, "arXiv 2412.00054"),
    "bitdelta": Peer(bitdelta, None, "arXiv 2402.10193"),
    "tvq 2 bit": Peer(tvq(2), None, "arXiv 2503.06921"),
    "tvq 3 bit": Peer(tvq(3), None, "arXiv 2503.06921"),
    "tvq 4 bit": Peer(tvq(4), None, "arXiv 2503.06921"),
    "rtvq": Peer(rtvq, None, "arXiv 2503.06921", whole_suite=True),
    "tsv-compress": Peer(tsv_compress, None, "arXiv 2412.00081", whole_suite=True),
    "emr": Peer(emr, None, "arXiv 2405.17461", whole_suite=True),
    "tall-mask": Peer(tall_mask, None, "arXiv 2405.07813", whole_suite=True),
}

__all__ = [
    "ABLATIONS",
    "PEERS",
    "SIZES",
    "Deltas",
    "Encoded",
    "Peer",
    "bitdelta",
    "dare",
    "delta_come",
    "drop_4bit",
    "emr",
    "fp32_bits",
    "grouped",
    "impart",
    "impart_qt",
    "low_rank",
    "mask_bits",
    "plain_svd",
    "prinmix",
    "rice_bits_an_element",
    "rtvq",
    "t_switch",
    "tall_mask",
    "tsv_compress",
    "tvq",
    "ultradelta",
    "uniform",
    "unscaled",
]
