"""Folders that change under a server: what is in memory answers, with its own labels and its own tokens."""

import shutil

import pytest
import transformers

TestClient = pytest.importorskip("tests.dts.serve.client").TestClient

import dts  # noqa: E402
from dts.files.mapped import MAPS  # noqa: E402
from dts.serve.http.app import application  # noqa: E402
from dts.serve.metrics import Metrics  # noqa: E402
from dts.serve.options import Options  # noqa: E402
from dts.serve.refused import Refused  # noqa: E402
from dts.serve.start import serve  # noqa: E402
from dts.serve.waiting import Batching  # noqa: E402
from tests.dts.serve.asking import ask  # noqa: E402
from tests.dts.serve.conftest import changed, tokenizer  # noqa: E402


@pytest.fixture
def copied(encoder, tmp_path):
    """A server of the encoder's tasks in a folder of the test's own."""
    shutil.copytree(encoder.adapters, tmp_path / "adapters")
    served = serve(Options(str(encoder.base), tmp_path / "adapters", device="cpu", batching=Batching(wait=0)))
    served.engine.start()
    client = TestClient(application(served, Metrics()), raise_server_exceptions=False)
    client.served = served
    yield client
    assert served.engine.drain(30)


def replaced(encoder, place, tmp_path, classes, tokens=None):
    """Puts another adapter into a folder."""
    found = transformers.BertForSequenceClassification.from_pretrained(
        encoder.base, id2label=dict(enumerate(classes)), num_labels=len(classes)
    )
    changed(found, 7).save_pretrained(tmp_path / "tuned")
    if tokens is not None:
        tokens.save_pretrained(tmp_path / "tuned")
    shutil.rmtree(place, ignore_errors=True)
    dts.compress(encoder.base, tmp_path / "tuned", out=place, rank_fraction=0.5)


@pytest.mark.skipif(not MAPS.exists(), reason="which files are mapped is known on Linux alone")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_base_that_is_written_to_is_answered_with_no_more(encoder, tmp_path):
    """Its weights are pages of the file; of one that another file takes the place of they stay."""
    shutil.copytree(encoder.base, tmp_path / "base")
    served = serve(Options(str(tmp_path / "base"), encoder.adapters, device="cpu", batching=Batching(wait=0)))
    served.engine.start()
    client = TestClient(application(served, Metrics()), raise_server_exceptions=False)
    file, body = tmp_path / "base" / "model.safetensors", {"model": "mood", "input": "hello"}
    before = client.post("/classify", json=body).json()["data"]
    shutil.copy(file, tmp_path / "new")
    (tmp_path / "new").replace(file)
    assert client.post("/classify", json=body).json()["data"] == before
    assert served.engine.drain(30)

    shutil.copytree(encoder.base, tmp_path / "again")
    file = tmp_path / "again" / "model.safetensors"
    served = serve(Options(str(tmp_path / "again"), encoder.adapters, device="cpu", batching=Batching(wait=0)))
    served.engine.start()
    client = TestClient(application(served, Metrics()), raise_server_exceptions=False)
    assert client.post("/classify", json=body).json()["data"] == before
    with open(file, "r+b") as opened:
        opened.seek(-4096, 2)
        opened.write(bytes(4096))
    told = client.post("/classify", json=body)
    assert told.status_code == 503 and told.json()["error"]["code"] == "base_altered", told.text
    served.engine._thread.join(10)
    assert client.get("/health").status_code == 503
    assert client.post("/classify", json=body).status_code == 503


def test_labels_are_those_of_the_task_that_answered(encoder, copied, tmp_path):
    body = {"model": "mood", "input": "hello"}
    before = copied.post("/classify", json=body).json()["data"]
    replaced(encoder, tmp_path / "adapters" / "mood", tmp_path, ["other", "another"])
    assert copied.post("/classify", json=body).json()["data"] == before and before[0]["label"] in ("sad", "glad")
    copied.served.engine.load("mood", again=True)
    assert copied.post("/classify", json=body).json()["data"][0]["label"] in ("other", "another")
    copied.served.engine.unload("mood")
    replaced(encoder, tmp_path / "adapters" / "mood", tmp_path, ["third", "fourth"])
    assert copied.post("/classify", json=body).json()["data"][0]["label"] in ("third", "fourth")


def test_a_request_that_waited_is_not_answered_by_another_tokenizers_tokens(encoder, copied, tmp_path):
    served = copied.served
    served.engine.load("mood")
    text = served.texts.of(dts.serve.choice.choice_of("mood", "base"))
    replaced(encoder, tmp_path / "adapters" / "mood", tmp_path, ["sad", "glad"], tokenizer("{{ messages }}"))
    assert served.texts.of(dts.serve.choice.choice_of("mood", "base")) is text  # that of what is in memory
    job = ask(served, "classify", "mood", "hello", submit=False)
    job.current = lambda: served.texts.of(job.choice) is text
    served.engine.load("mood", again=True)
    served.engine.submit(job)
    with pytest.raises(Refused, match="loaded again with another tokenizer") as error:
        job.collected.events()
    assert error.value.status == 409
    assert copied.post("/classify", json={"model": "mood", "input": "hello"}).status_code == 200


def test_tokens_that_a_tokenizer_has_and_its_model_has_not(encoder, copied, tmp_path):
    """An added token whose table nobody enlarged: on a GPU the process would not come back from it."""
    larger = tokenizer()
    larger.add_tokens(["<new>"])
    replaced(encoder, tmp_path / "adapters" / "added", tmp_path, ["u", "v"], larger)
    found = copied.post("/classify", json={"model": "added", "input": ["plain", "a <new> one"]})
    assert found.status_code == 400 and "the token 258 is none of the 258" in found.json()["error"]["message"]
    assert copied.post("/classify", json={"model": "added", "input": "plain"}).status_code == 200


def test_a_folder_that_goes_while_models_are_listed(copied, monkeypatch):
    monkeypatch.setattr(copied.served.catalogue, "names", lambda: ["gone", "mood"])
    found = copied.get("/v1/models")
    assert found.status_code == 200 and [one["id"] for one in found.json()["data"]] == ["base", "mood"]
