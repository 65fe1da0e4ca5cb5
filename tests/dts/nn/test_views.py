"""With a task set a transformers model is that task's: its labels, sizes, loss and files."""

import copy
import pickle
import threading

import pytest
import torch

transformers = pytest.importorskip("transformers")

from dts.adapter import Adapter  # noqa: E402
from dts.nn import BASE, DTSModel, views  # noqa: E402
from tests.dts.nn.classifiers import CLASSES, TEXT, close, family  # noqa: E402

IDS = torch.randint(3, 50, (4, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return family(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def model(bert):
    return bert.model()


def labels_of(task, rows=4):
    generator = torch.Generator().manual_seed(2)
    names, problem = CLASSES.get(task, (["", ""], None))
    if problem is None:
        return torch.randint(0, len(names), (rows,), generator=generator)
    return torch.randint(0, 2, (rows, len(names)), generator=generator).float()


@pytest.mark.parametrize("how", ["set_task", "tasks", "using_task"])
@pytest.mark.parametrize("task", [*CLASSES, None])
def test_one_task_has_its_labels_width_and_loss(bert, model, task, how):
    dense, labels = bert.dense[task], labels_of(task)
    expected = dense(IDS, labels=labels)
    before = copy.deepcopy(vars(model.model.config))
    if how == "set_task":
        model.set_task(task)
        found, config, count = model(IDS, labels=labels), model.config, model.num_labels
    elif how == "tasks":
        found = model(IDS, labels=labels, tasks=task or BASE)
    else:
        with model.using_task(task):
            found, config, count = model(IDS, labels=labels), model.config, model.num_labels
    close(found.logits, expected.logits)
    close(found.loss, expected.loss)
    if how != "tasks":
        assert config.id2label == dense.config.id2label and config.label2id == dense.config.label2id
        assert config.num_labels == count == dense.num_labels
        assert config.problem_type == (CLASSES[task][1] if task else None)
        assert type(config) is transformers.BertConfig
    assert vars(model.model.config) == before
    model.set_task(None)
    assert model.config is model.model.config and model.num_labels == 2
    close(model(IDS).logits, bert.dense[None](IDS).logits)


def test_labels_may_come_by_place(bert, model):
    labels = labels_of("topic")
    found = model(IDS, None, None, None, None, labels, tasks="topic")
    close(found.loss, bert.dense["topic"](IDS, labels=labels).loss)


def test_a_list_has_one_width_for_all(model):
    """Also where all items are one task: batches of a loop can be joined."""
    for tasks in (["mood", "topic", "mood", "stars"], ["mood"] * 4):
        assert model(IDS, tasks=tasks).logits.shape == (4, 5)
        assert [len(row) for row in model.task_logits(model(IDS, tasks=tasks))] == [
            len(CLASSES[task][0]) for task in tasks
        ]
    model.set_tasks(["mood"] * 4)
    assert model(IDS).logits.shape == (4, 5)


def test_rows_of_several_tasks_share_a_loss_where_there_is_one(bert, model):
    tasks = ["mood", "topic", "topic", "mood"]
    labels = torch.tensor([1, 4, 0, 0])
    rows = [bert.dense[t](IDS[i : i + 1], labels=labels[i : i + 1]).loss for i, t in enumerate(tasks)]
    close(model(IDS, labels=labels, tasks=tasks).loss, torch.stack(rows).mean())
    with pytest.raises(ValueError, match="labels: row 0 has 4, its task has 2 classes, 0 to 1"):
        model(IDS, labels=torch.tensor([4, 4, 0, 0]), tasks=tasks)
    with pytest.raises(ValueError, match=r"have 1 and 2 classes \(regression, single_label.*no loss in common"):
        model(IDS, labels=torch.tensor([1, 1, 0, 0]), tasks=["mood", "stars", "mood", "mood"])
    with pytest.raises(ValueError, match="no loss in common"):
        model(IDS, labels=torch.ones(4, 3), tasks=["many"] * 4)
    two = bert.model("many")
    two.delete_task("many")
    assert two(IDS, labels=torch.tensor([1, 1, 0, 0]), tasks=[None] * 4).loss.isfinite()


def test_several_tasks_have_no_labels_in_common(model):
    model.set_tasks(["mood", "topic", "mood", "topic"])
    config = model.config
    assert config.hidden_size == 32 and "several tasks" in repr(config.id2label)
    for ask in (lambda: config.num_labels, lambda: config.id2label[0], lambda: model.num_labels):
        with pytest.raises(ValueError, match="set to tasks with different classes"):
            ask()
    assert copy.deepcopy(config).hidden_size == 32 and pickle.loads(pickle.dumps(config)).hidden_size == 32
    model.set_tasks(["topic"] * 4)
    assert model.config.id2label[4] == "war"


def test_mixtures_have_names_where_their_tasks_agree(bert, model):
    model.load_task("again", bert.adapters["topic"])
    model.set_task({"topic": 0.5, "again": 0.5})
    assert model.config.id2label[4] == "war"
    close(model(IDS).logits, bert.dense["topic"](IDS).logits)
    other = copy.copy(bert.adapters["topic"])
    other.model_config = {**other.model_config, "id2label": {str(i): f"other {i}" for i in range(5)}, "label2id": None}
    model.load_task("again", other)
    assert model.config.id2label == {i: f"LABEL_{i}" for i in range(5)}
    model.set_task("again")
    assert model.config.id2label[4] == "other 4" and model.config.label2id["other 4"] == 4


def test_what_is_written_into_the_config_is_the_models(model):
    model.set_task("topic")
    view = model.config
    view.pad_token_id = 7
    model(IDS)
    assert model.model.config.pad_token_id == 7
    model.model.config.pad_token_id = 9
    assert model.config.pad_token_id == 9 and model.config is view
    view.use_cache = False
    model.load_task("more", model._loaded["mood"].adapter)
    assert model.model.config.use_cache is False
    model.set_task("mood")
    assert model.config.use_cache is False and model.config.pad_token_id == 9
    model.config.id2label = {0: "no", 1: "yes"}
    assert model.config.id2label[1] == "yes" and model.model.config.id2label[1] == "LABEL_1"


def test_threads_see_their_own_task(bert, model):
    model.set_task("mood")
    wrong, barrier = [], threading.Barrier(2)

    def work(task):
        barrier.wait()
        labels = labels_of(task)
        expected = bert.dense[task](IDS, labels=labels).loss
        for _ in range(20):
            with model.using_task(task):
                names = list(model.config.id2label.values())
                loss = model(IDS, labels=labels).loss
            if names != CLASSES[task][0] or not torch.allclose(loss, expected, atol=1e-4):
                wrong.append((task, names, loss))

    threads = [threading.Thread(target=work, args=(task,)) for task in ("topic", "stars")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and model.config.id2label[1] == "good"


def test_a_loss_of_the_base_tells_tasks_nothing(bert, model):
    """transformers writes the kind of problem into the config at the first loss."""
    model(IDS, labels=torch.tensor([0, 1, 0, 1]))
    model(IDS, labels=torch.tensor([0, 1, 0, 1]), tasks="mood")
    assert model.model.config.problem_type is None
    floats = torch.randint(0, 2, (4, 5)).float()
    dense = copy.deepcopy(bert.dense["topic"])
    dense.config.problem_type = None
    close(model(IDS, labels=floats, tasks="topic").loss, dense(IDS, labels=floats).loss)


def test_hooks_and_what_a_call_leaves_behind(model):
    seen = []
    model.set_task("topic")
    handle = model.model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits.shape))
    model(IDS)
    handle.remove()
    assert seen == [(4, 5)]
    original = type(model.model).forward

    def counting(self, *args, **kwargs):
        self.count = getattr(self, "count", 0) + 1
        return original(self, *args, **kwargs)

    class Counting(type(model.model)):
        forward = counting

    model.model.__class__ = Counting
    model(IDS)
    model(IDS, labels=labels_of("topic"))
    assert model.model.count == 2


def test_a_compiled_model_has_the_tasks_loss(bert, model):
    model.set_task("topic")
    labels = labels_of("topic")
    expected = bert.dense["topic"](IDS, labels=labels).loss
    model.model.compile(backend="eager")
    close(model(IDS, labels=labels).loss, expected)
    assert model.task_logits(model(IDS))[0].shape == (5,) and model.config.id2label[4] == "war"
    model.set_task("mood")
    assert model.task_logits(model(IDS))[0].shape == (2,)


@pytest.mark.parametrize("task", [*CLASSES, None, {"mood": 0.5}])
def test_the_task_that_is_set_is_written(bert, model, task, tmp_path):
    model.set_task(task)
    expected = model(IDS).logits
    model.save_pretrained(tmp_path / "out")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    close(again(IDS).logits, expected)
    name = "mood" if isinstance(task, dict) else task
    assert again.config.id2label == bert.dense[name].config.id2label
    assert again.config.problem_type == (CLASSES[name][1] if name else None)
    close(model(IDS).logits, expected)  # this model is as it was
    assert model.tasks == list(CLASSES) and model.config.id2label == again.config.id2label


def test_the_base_and_the_adapters_are_written(bert, model, tmp_path):
    model.set_task("topic")
    model.save_pretrained(tmp_path / "base", what="base")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base").eval()
    close(again(IDS).logits, bert.dense[None](IDS).logits)
    assert again.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    model.save_pretrained(tmp_path / "adapters", what="adapters")
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == sorted(CLASSES)
    loaded = DTSModel.from_pretrained(bert.folder, adapters={"t": Adapter.load(tmp_path / "adapters" / "topic")})
    close(loaded(IDS, tasks="t").logits, model(IDS).logits)
    with pytest.raises(FileExistsError):
        model.save_pretrained(tmp_path / "adapters", what="adapters")
    model.save_pretrained(tmp_path / "adapters", what="adapters", overwrite=True)
    with pytest.raises(ValueError, match="one of 'model', 'base', 'adapters', not 'all'"):
        model.save_pretrained(tmp_path / "x", what="all")
    with pytest.raises(ValueError, match="state_dict= would be written in the place"):
        model.save_pretrained(tmp_path / "x", state_dict=model.state_dict())
    model.set_tasks(["mood", "topic"])
    with pytest.raises(ValueError, match="several tasks, and a folder has one model"):
        model.save_pretrained(tmp_path / "x")
    model.load_task("bare", bert.adapters["mood"].entries)
    with pytest.raises(ValueError, match="loaded from entries have no adapter to write: .'bare'."):
        model.save_pretrained(tmp_path / "x", what="adapters")
    assert not (tmp_path / "x").exists()


def test_the_hub_gets_what_a_folder_gets(model, tmp_path):
    class Pushed(type(model.model)):
        def push_to_hub(self, name, **options):  # as the library's own does it, without the hub
            self.save_pretrained(tmp_path / name, **options)

    model.model.__class__ = Pushed
    model.set_task("topic")
    model.push_to_hub("out", max_shard_size="1GB")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").id2label[4] == "war"


def test_classes_by_name(bert, model):
    tasks = ["mood", "topic", None, "many", "stars"]
    ids = torch.cat([IDS, IDS[:1]])
    found = model.predict({"input_ids": ids}, tasks=tasks)
    for i, (row, task) in enumerate(zip(found, tasks)):
        logits = bert.dense[task](ids[i : i + 1]).logits[0]
        expected = {"many": torch.sigmoid, "stars": lambda x: x}.get(task, lambda x: x.softmax(-1))(logits).detach()
        close(row.probabilities, expected)
        names = list(bert.dense[task].config.id2label.values())
        assert row.names == names and row.label == names[int(logits.argmax())] and row.task == task
        assert row.score == pytest.approx(float(expected.max()), abs=1e-4)
    assert found[1].label in repr(found[1]) and "'topic'" in repr(found[1])
    model.set_task("topic")
    assert [row.names for row in model.predict({"input_ids": IDS})] == [CLASSES["topic"][0]] * 4
    with model.using_task("mood"):
        assert model.predict({"input_ids": IDS})[3].names == ["bad", "good"]
    model.set_tasks(["mood", "topic", "mood", "topic"])
    assert [len(row.names) for row in model.predict({"input_ids": IDS})] == [2, 5, 2, 5]
    assert [row.task for row in model.predict({"input_ids": IDS}, tasks="auto")][0] in (*CLASSES, BASE)


def test_another_config_and_one_of_no_library(model):
    model.set_task("topic")
    assert model.config.id2label[4] == "war"
    model.model.config = copy.deepcopy(model.model.config)
    model.model.config.pad_token_id = 11
    assert model.config.id2label[4] == "war" and model.config.pad_token_id == 11

    class Own(torch.nn.Linear):
        config = None

        def forward(self, x, labels=None):
            self.config["calls"] += 1
            return super().forward(x) + labels

    bare = Own(3, 4)
    bare.config = {"calls": 0}
    wrapped = DTSModel(bare)
    wrapped(torch.ones(2, 3), labels=torch.ones(2, 4))
    assert wrapped.config is bare.config and bare.config == {"calls": 1}


def test_models_that_do_not_classify_are_said_so():
    bare = DTSModel(
        transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    )
    with pytest.raises(ValueError, match="for models that classify"):
        bare.predict({"input_ids": IDS})
    plain = DTSModel(torch.nn.Linear(3, 4))
    assert not hasattr(plain, "config") and isinstance(plain, DTSModel) and not isinstance(plain, torch.nn.Linear)
    with pytest.raises(ValueError, match="for models that classify"):
        plain.predict({"input": torch.ones(2, 3)})
    with pytest.raises(AttributeError, match="no save_pretrained"):
        plain.save_pretrained("nowhere")


def test_tokens_are_classified_by_name(tmp_path):
    classes = {"ner": (["O", "PER", "LOC"], None), "pos": (["N", "V"], None)}
    tokens = family(tmp_path, "BertForTokenClassification", sizes=TEXT, classes=classes)
    model = tokens.model()
    labels = torch.randint(0, 2, IDS.shape)
    for task in (*classes, None):
        expected = tokens.dense[task](IDS, labels=labels)
        found = model(IDS, labels=labels, tasks=task or BASE)
        close(found.logits, expected.logits)
        close(found.loss, expected.loss)
    rows = ["ner", "pos", "ner", "pos"]
    per_row = [tokens.dense[t](IDS[i : i + 1], labels=labels[i : i + 1]).loss for i, t in enumerate(rows)]
    close(model(IDS, labels=labels, tasks=rows).loss, torch.stack(per_row).mean())
    found = model.predict({"input_ids": IDS}, tasks=rows)
    wanted = [classes["ner"][0][i] for i in tokens.dense["ner"](IDS[:1]).logits[0].argmax(-1)]
    assert found[0].label == wanted and len(found[0].score) == 6


def test_a_larger_vocabulary_is_the_tasks(tmp_path):
    """The loss of a language model is over its own ids."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    base = transformers.GPT2LMHeadModel(config).eval()
    base.save_pretrained(tmp_path / "base")
    tuned = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    tuned.resize_token_embeddings(56)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.003 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "tuned")
    import dts

    adapter = dts.compress(tmp_path / "base", tmp_path / "tuned", name="more", rank_fraction=0.5)
    model = DTSModel.from_pretrained(tmp_path / "base", adapters={"more": adapter})
    plain = copy.deepcopy(model).merge_and_unload("more")
    ids = torch.randint(0, 50, (2, 5), generator=torch.Generator().manual_seed(3))
    own = torch.where(torch.arange(5) == 3, 55, ids)
    model.set_task("more")
    assert model.config.vocab_size == 56 and model.model.config.vocab_size == 50
    close(model(own, labels=own).loss, plain(own, labels=own).loss)
    assert model(own).logits.shape == (2, 5, 56)
    model.set_task(None)
    assert model.config.vocab_size == 50 and model(ids).logits.shape == (2, 5, 50)
    mean = (base(ids[:1], labels=ids[:1]).loss + plain(own[1:], labels=own[1:]).loss) / 2
    mixed = torch.cat([ids[:1], own[1:]])
    close(model(mixed, labels=mixed, tasks=[None, "more"]).loss, mean)


def test_a_program_does_not_take_the_bases_loss_for_a_task(bert, model):
    """Its loss is the one that it was made with: where it must be one program that is said, else the call is right."""
    model.set_task("topic")
    labels = labels_of("topic")
    torch._dynamo.reset()
    with pytest.raises(Exception, match="compute the loss from the logits"):
        torch.compile(model, fullgraph=True, backend="eager")(IDS, labels=labels)
    torch._dynamo.reset()
    found = torch.compile(model, backend="eager")(IDS, labels=labels)
    close(found.loss, bert.dense["topic"](IDS, labels=labels).loss)


def test_of_tasks_with_the_same_classes_a_load_looks_at_one(bert, monkeypatch):
    """Whatever is loaded already: each look takes a fifth of a millisecond."""
    model, entries = bert.model("mood"), bert.adapters["mood"].entries
    model.delete_task("mood")
    for i in range(4):
        model.load_task(f"plain {i}", entries)  # entries alone say nothing of classes
    looked, made = [], views._View.made
    monkeypatch.setattr(views._View, "made", lambda *given: looked.append(given) or made(*given))
    model.load_task("plain 4", entries)
    assert len(looked) == 1 and not model._other_labels
    model.load_task("topic", bert.adapters["topic"])
    assert len(looked) == 3 and model._other_labels
