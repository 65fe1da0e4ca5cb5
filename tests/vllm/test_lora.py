"""Adapters as LoRAs in `vllm serve`, found by their names in requests."""

import pytest

from tests.vllm.conftest import PROMPTS, Server, all_at_once, as_found, end

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    found = Server(models, tmp_path_factory.mktemp("lora"), "--max-loras", "4", "--max-lora-rank", "512")
    yield found
    end(found.process)


def test_components_are_a_lora_exactly_whatever_shares_the_batch(server, models):
    asked = [(task, prompt) for prompt in PROMPTS for task in ("exact", None)]
    for (task, prompt), answer in zip(asked, all_at_once(server, asked)):
        models.equal(as_found(answer), task, prompt, within=1e-4)


def test_what_is_left_out_is_said(server):
    status, answer = server.complete("a", PROMPTS[0])
    assert status == 200, answer
    log = server.log.read_text()
    assert "the adapter a as a LoRA: 16 layers" in log and "5 vectors are left out" in log
    assert "the adapter exact as a LoRA: 16 layers" in log


@pytest.mark.parametrize(
    "name, status, words",
    [
        ("nobody", 404, "does not exist"),
        ("../base", 404, "does not exist"),
        (".dts-vllm", 404, "does not exist"),
        ("other", 400, "of another base"),
        ("sketch", 400, "samples"),
        ("damaged", 409, "is damaged"),
    ],
)
def test_what_cannot_be_a_lora_is_refused_with_the_reason(server, name, status, words):
    found, answer = server.complete(name, PROMPTS[0])
    assert found == status and words in str(answer), answer
    assert server.complete(None, PROMPTS[0])[0] == 200
