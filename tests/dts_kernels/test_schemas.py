"""The ops' schemas, which compiled programs hold: what the lists of operands make of them."""

import pytest
import torch

from dts_kernels.operands import DenseOperands, FactorOperands, SampleOperands, StoredSamples, schema

BANK = "Tensor[] packed, Tensor table, Tensor slots, Tensor weights, int out_features, int max_rank, str layout"
SAMPLES = "Tensor[] codes, Tensor table, Tensor starts, Tensor scales"
SCHEMAS = {
    "delta_linear": f"Tensor x, Tensor? y, {BANK}, bool transposed",
    "linear": f"Tensor x, Tensor weight, Tensor? bias, {BANK}",
    "delta_embedding": f"Tensor ids, {BANK}, int in_features, ScalarType dtype",
    "reconstruct": "Tensor[] packed, Tensor table, Tensor gamma, Tensor? base, int out_features, int in_features, "
    "int max_rank, str layout, ScalarType dtype",
    "add_samples": f"Tensor x, Tensor y, {SAMPLES}, Tensor slots, Tensor weights, bool transposed",
    "add_sampled_rows": f"Tensor ids, Tensor y, {SAMPLES}, Tensor slots, Tensor weights, int rows",
    "add_dense_samples": f"Tensor base, {SAMPLES}, Tensor gamma",
}


@pytest.mark.parametrize("op", SCHEMAS)
def test_schemas_stay(op):
    assert str(getattr(torch.ops.dts, op).default._schema) == f"dts::{op}({SCHEMAS[op]}) -> Tensor"


def test_a_list_of_operands_names_them_in_order():
    assert schema(FactorOperands) == BANK and schema(StoredSamples) == SAMPLES
    assert schema(SampleOperands) == f"{SAMPLES}, Tensor slots, Tensor weights"
    assert [part.split()[1] for part in schema(DenseOperands).split(", ")] == list(DenseOperands._fields)
