"""The GPU's paths, Triton kernels all of them; on a CPU with TRITON_INTERPRET=1 they run in its interpreter.

A bank's layout tells a path whether any task has levels, which the kernels then assume of all.
"""

from torch import Tensor

from .. import dispatch
from ..embedding_parts import EmbeddingParts, row_in
from ..gpu import library_products, products, rules, sample_matrices, sample_products
from ..paths import register
from ..routing import Routing

dispatch.chooser(rules.choose)

for _levels in ("", "_levels"):
    register("delta_linear", "triton" + _levels, adds=True)(products.delta_linear)
    register("delta_linear", "dequantise" + _levels)(library_products.delta_linear)
    register("linear", "triton" + _levels, adds=True)(products.linear)
    register("linear", "dequantise" + _levels)(library_products.linear)
    register("reconstruct", "triton" + _levels)(products.reconstruct)
    register("delta_embedding", "triton" + _levels)(products.rows)

register("add_samples", "triton", starts=sample_products.start_samples)(sample_products.add_samples)
register("add_samples", "dense")(sample_matrices.add_dense)
register("add_sampled_rows", "triton")(sample_matrices.add_rows)


@register("add_embedding", "triton")
def add_embedding(ids: Tensor, y: Tensor, parts: EmbeddingParts, routing: Routing) -> Tensor:
    """Into y itself, a launch a bank."""
    for bank, lookup in parts.banks:
        if bank.max_rank:
            products.add_rows(row_in(lookup, ids), y, bank.operands(routing))
    return y
