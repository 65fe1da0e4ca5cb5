"""Four processes, as two."""

import pytest

from tests.dts.nn.parallel import cases, test_tensor_parallel

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def two(four):
    return four


test_a_llama_of_transformers_own_plan = test_tensor_parallel.test_a_llama_of_transformers_own_plan
test_parts_of_sequences_between_the_linear_layers = (
    test_tensor_parallel.test_parts_of_sequences_between_the_linear_layers
)
test_a_model_of_torchs_styles = test_tensor_parallel.test_a_model_of_torchs_styles
test_ids_that_do_not_divide = test_tensor_parallel.test_ids_that_do_not_divide_in_a_table_that_a_head_is_tied_to


def test_tensor_parallel_and_fully_sharded_at_once_is_refused(four):
    for found in four(cases.both):
        assert "the model is fully sharded and tensor-parallel at once" in found
