"""`dts serve` and `dts plan` over bases that libraries quantised: answers are those of `DTSModel` over them."""

import importlib.util
import json
import shutil
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from typer.testing import CliRunner

import dts
from dts.cli.app import app
from dts.nn.base import QuantisedBase
from dts.serve.options import Options, problems
from dts.serve.refused import Refused
from tests.dts.serve.asking import ask, texts
from tests.dts.serve.conftest import changed, start, tokenizer  # noqa: F401  start is a fixture
from tests.quantised.conftest import QUANTISERS

pytestmark = [pytest.mark.quantised, pytest.mark.filterwarnings("ignore::dts.nn.base.QuantisedBase")]
SIZES = dict(vocab_size=258, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
IDS = dict(bos_token_id=None, eos_token_id=1, pad_token_id=0)


class Place:
    """A base, adapters of it in a folder, and the base quantised in others."""

    def __init__(self, root: Path):
        self.root, self.plain, self.adapters = root, root / "plain", root / "adapters"

    def quantised(self, kind: str) -> Path:
        path = self.root / kind.replace(" ", "-").replace(",", "")
        if not path.exists():
            config = QUANTISERS[kind]()
            cls = getattr(transformers, transformers.AutoConfig.from_pretrained(self.plain).architectures[0])
            cls.from_pretrained(self.plain, quantization_config=config).eval().save_pretrained(path)
            tokenizer().save_pretrained(path)
        return path


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Place:
    """A Llama with a and b, and other, which is of another base."""
    place = Place(tmp_path_factory.mktemp("decoder"))
    for seed, name in ((5, "strange"), (0, "plain")):
        torch.manual_seed(seed)
        base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **IDS, max_position_embeddings=128))
        with torch.no_grad():
            for parameter in base.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        base.save_pretrained(place.root / name)
    for seed, name in enumerate(("a", "b")):
        changed(base, seed).save_pretrained(place.root / name)
        dts.compress(place.plain, place.root / name, out=place.adapters / name, rank_fraction=0.3)
    strange = place.root / "strange"
    tuned = changed(transformers.LlamaForCausalLM.from_pretrained(strange), 7)
    tuned.save_pretrained(place.root / "tuned")
    dts.compress(strange, place.root / "tuned", out=place.adapters / "other", rank_fraction=0.3)
    return place


def served_over(start, folder: Path, place: Place, **options):  # noqa: F811
    return start(SimpleNamespace(base=folder, adapters=place.adapters), run=False, name="base", **options)


def refused(served, task: str) -> Refused:
    with pytest.raises(Refused) as error:
        ask(served, "generate", task, "hi", max_tokens=2).collected.events()
    return error.value


@pytest.mark.parametrize("kind", ["torchao int8", "bitsandbytes int8", "bitsandbytes nf4"])
def test_every_task_answers_as_the_model_over_the_quantised_base(decoder, start, kind):  # noqa: F811
    folder = decoder.quantised(kind)
    served = served_over(start, folder, decoder)
    prompts = {"a": "hi", "b": "a longer prompt", "base": "x", "a:0.7,b:0.3": "yes?"}
    jobs = [ask(served, "generate", name, prompt, max_tokens=8, temperature=0) for name, prompt in prompts.items()]
    served.engine.start()
    tasks = {name: decoder.adapters / name for name in ("a", "b")}
    model, found = dts.DTSModel.from_pretrained(folder, adapters=tasks), []
    for job, (name, prompt) in zip(jobs, prompts.items()):
        ids = torch.tensor([served.texts.base.encode(prompt)])
        given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
        answer = model.generate(ids, tasks=job.choice.selection, **given)[0, ids.shape[1] :]
        found.append(texts(job)[0])
        assert found[-1] == served.texts.base.decode(answer.tolist()), name
    assert len(set(found)) > 2
    other = refused(served, "other")
    assert (other.status, other.code) == (400, "other_base") and "is other than here" in str(other)
    assert str(decoder.root) not in str(other)
    assert texts(ask(served, "generate", "a", "hi", max_tokens=8, temperature=0))[0] == found[0]


def test_it_can_be_said_what_the_base_was(decoder, start, tmp_path):  # noqa: F811
    """Then an adapter of another base is told by its configuration, and what is said is compared with the codes."""
    folder = decoder.quantised("torchao int8")
    served = served_over(start, folder, decoder, quantised_from=str(decoder.plain))
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantisedBase)  # declared and measured: not warned of
        served.engine.start()
        assert texts(ask(served, "generate", "a", "hi", max_tokens=3, temperature=0))
    assert "before it was quantised" in str(refused(served, "other"))
    wrong = served_over(start, folder, decoder, quantised_from=str(decoder.root / "strange"))
    wrong.engine.start()
    assert "is of another base" in str(refused(wrong, "a"))  # whose base is not what it is said to be
    assert "no quantised form of that" in (why := str(refused(wrong, "other"))) and str(decoder.root) not in why


def test_an_adapter_made_for_the_codes_is_served_too(decoder, start, tmp_path):  # noqa: F811
    folder = decoder.quantised("torchao int8")
    dts.compress(folder, decoder.root / "a", out=tmp_path / "repaired", rank_fraction=0.3, base_is="quantised")
    place = SimpleNamespace(adapters=tmp_path)
    for options in ({}, {"quantised_from": str(decoder.plain)}):
        served = served_over(start, folder, place, **options)
        served.engine.start()
        assert texts(ask(served, "generate", "repaired", "hi", max_tokens=3, temperature=0))


def test_everything_that_is_wrong_is_said_before_anything_is_loaded(decoder, tmp_path, monkeypatch):
    folder = decoder.quantised("torchao int8")
    assert not problems(Options(str(folder), decoder.adapters, port=8765))
    said = partial(Options, adapters=decoder.adapters, port=8765)
    assert problems(said(str(decoder.plain), quantised_from="x")) == ["--quantised-from: the model is not quantised"]
    (wrong,) = problems(said(str(folder), quantised_from=str(tmp_path)))
    assert wrong.startswith("--quantised-from: ")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else found(name))
    (wrong,) = problems(said(str(folder)))
    assert "quantised by torchao, which is not installed: pip install 'dts-merge[quantised]'" in wrong
    shutil.copytree(folder, tmp_path / "nameless")
    config = json.loads((tmp_path / "nameless" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "nameless" / "config.json").write_text(json.dumps(config))
    (wrong,) = problems(said(str(tmp_path / "nameless")))
    assert wrong.startswith("the model: ") and "quantised" in wrong


@pytest.mark.parametrize("kind", ["torchao int8", "bitsandbytes int8", "bitsandbytes nf4"])
def test_a_plan_counts_codes(decoder, kind):
    """Its base is what the loaded model holds, tensor by tensor, within what alignment and tables take."""
    folder = decoder.quantised(kind)
    made = dts.plan.plan(folder, {"a": decoder.adapters / "a"})
    rows = {row.what: row for row in made.rows}
    model = dts.DTSModel.from_pretrained(folder).model
    held = sum(memory_of(tensor) for tensor in {id(t): t for t in model.parameters()}.values())
    assert held <= rows["base"].nbytes <= 1.05 * held
    assert "heads" not in rows and rows["a"].task and made.dtype == "float32"
    assert any("computes with codes" in words for words in made.unknown)
    done = CliRunner().invoke(app, ["plan", str(folder), str(decoder.adapters / "a"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["rows"], done.output
    model = dts.DTSModel.from_pretrained(folder, {"a": decoder.adapters / "a"}, memory="4GiB")
    assert model.tasks == ["a"] and model.plan.room > 0


def memory_of(tensor: torch.Tensor) -> int:
    """Bytes of what a parameter holds, scales and tables included."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(getattr(tensor, name).nbytes for name in names)
    state = getattr(tensor, "quant_state", None)
    more = [] if state is None else [state.absmax, state.code]
    return tensor.nbytes + sum(t.nbytes for t in [*more, getattr(tensor, "SCB", None)] if t is not None)
