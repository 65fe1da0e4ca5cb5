"""Four processes, as two."""

import pytest

from tests.dts.nn.parallel import cases, test_parallel

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="session")
def two(four):
    return four


test_a_llama_of_transformers_own_plan = test_parallel.test_a_llama_of_transformers_own_plan
test_parts_of_sequences_between_the_linear_layers = test_parallel.test_parts_of_sequences_between_the_linear_layers
test_a_fully_sharded_llama = test_parallel.test_a_fully_sharded_llama
test_a_model_of_torchs_styles = test_parallel.test_a_model_of_torchs_styles
test_ids_that_do_not_divide = test_parallel.test_ids_that_do_not_divide_in_a_table_that_a_head_is_tied_to


def test_parallel_and_fully_sharded_at_once_is_refused(four):
    for found in four(cases.both):
        assert "the model is fully sharded and tensor-parallel at once" in found
