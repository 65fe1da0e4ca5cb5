"""A model whose tasks come from disk when they are asked for: the answers of one that has them all."""

import copy
import pickle
import random
import threading

import pytest
import torch
from classifiers import family

from dts.adapter import Adapter
from dts.nn import DTSModel
from dts.nn.shelf import Source
from dts.nn.sizes import bytes_at, bytes_of

IDS = torch.arange(36).view(4, 9) % 50


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    made = family(tmp_path_factory.mktemp("bert"))
    for name, adapter in made.adapters.items():
        adapter.save(tmp_path_factory.mktemp("adapters") / name)
    return made


@pytest.fixture
def limited(bert):
    def make(room=2.2, pin=(), loaded=()):
        """A model with room for so many tasks."""
        sources = {name: Source(a.folder, bytes_at(a.folder)) for name, a in bert.adapters.items()}
        model = DTSModel._of_base(bert.folder, list(bert.adapters.values()))
        largest = max(source.nbytes for source in sources.values())
        model.keep_within(int(room * largest), sources, loaded, pin)
        return model

    return make


@torch.no_grad()
def answer(model, task):
    return model.task_logits(model(input_ids=IDS, tasks=task), tasks=task)


def same(a, b):
    """But for the last bits: a head is multiplied beside those of the other tasks in memory."""
    return all(torch.allclose(x, y, rtol=0, atol=1e-6) for x, y in zip(a, b, strict=True))


def test_what_a_folder_says_of_a_task_s_bytes_is_what_its_entries_say(bert):
    for adapter in bert.adapters.values():
        assert bytes_at(adapter.folder) == bytes_of(adapter)


def test_every_task_answers_though_two_fit(bert, limited):
    whole, model = bert.model(), limited(loaded=["mood"])
    assert model.tasks == list(bert.adapters) and model.status()["tasks"] == ["mood"]
    for task in [*bert.adapters, *reversed(bert.adapters), {"mood": 0.5, "many": 0.25}][:-1]:
        assert same(answer(model, task), answer(whole, task))
        assert len(model.status()["tasks"]) <= 2 and task in model.status()["tasks"]
        assert set(model.status()["on_disk"]) == set(bert.adapters) - set(model.status()["tasks"])
    rows = ["topic", "mood", "mood", "topic"]
    assert same(answer(model, rows), answer(whole, rows))


def test_what_is_set_stays_and_what_is_used_for_a_while_too(bert, limited):
    whole, model = bert.model(), limited()
    model.set_task("topic")
    for task in ("mood", "many", "stars"):
        answer(model, task)
    with torch.no_grad():
        set_logits = model(input_ids=IDS).logits
        whole.set_task("topic")
        assert same(set_logits, whole(input_ids=IDS).logits)
    with pytest.raises(ValueError, match=r"do not fit beside \['topic'\]"):
        answer(model, ["mood", "many", "mood", "many"])
    model.set_task(None)
    with model.using_task("stars"):
        answer(model, "mood")
        answer(model, "many")
        assert "stars" in model.status()["tasks"]
    model.pin_task("topic")
    for task in ("mood", "many", "stars"):
        answer(model, task)
    assert "topic" in model.status()["tasks"]
    model.unpin_task("topic")
    answer(model, ["mood", "many", "mood", "many"])
    assert "topic" not in model.status()["tasks"]


def test_threads_that_call_with_any_tasks_get_each_their_own(bert, limited):
    whole, model = bert.model(), limited()
    expected = {task: answer(whole, task) for task in bert.adapters}
    wrong = []

    def work(seed):
        draw = random.Random(seed)
        for _ in range(12):
            task = draw.choice(list(bert.adapters))
            try:
                if not same(answer(model, task), expected[task]):
                    wrong.append(task)
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads) and not wrong


def test_a_task_that_a_call_is_using_cannot_be_dropped_under_it(bert, limited):
    """Room for one: the second thread's load waits until the call is over."""
    model, whole = limited(room=1.2), bert.model()
    answer(model, "mood")
    inside, go_on, order = threading.Event(), threading.Event(), []

    def hold(module, args):
        if threading.current_thread().name == "first":
            inside.set()
            assert go_on.wait(20)

    handle = model.model.bert.encoder.layer[0].register_forward_pre_hook(hold)

    def first():
        order.append(("mood", same(answer(model, "mood"), answer(whole, "mood"))))

    def second():
        found = answer(model, "topic")
        order.append(("topic", same(found, answer(whole, "topic"))))

    threads = [threading.Thread(target=run, name=run.__name__, daemon=True) for run in (first, second)]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    threads[1].join(0.3)
    assert threads[1].is_alive() and "mood" in model.status()["tasks"]
    go_on.set()
    for thread in threads:
        thread.join(60)
    handle.remove()
    assert order == [("mood", True), ("topic", True)]


def test_tasks_can_be_fetched_before_they_are_asked_for(limited):
    model = limited()
    model.prefetch("stars", "many").result(60)
    assert set(model.status()["tasks"]) == {"stars", "many"}
    with pytest.raises(ValueError, match="no task 'x'"):
        model.prefetch("x")
    with pytest.raises(ValueError, match="do not fit beside nothing"):
        model.prefetch("stars", "many", "mood").result(60)
    with pytest.raises(ValueError, match="model with a limit"):
        DTSModel(torch.nn.Linear(1, 1)).prefetch("a")


def test_another_adapter_in_the_place_of_one_is_not_taken_for_it(bert, tmp_path):
    folder = tmp_path / "mine"
    save = lambda name: Adapter.load(bert.adapters[name].folder).save(folder, overwrite=True)  # noqa: E731
    save("mood")
    model = DTSModel._of_base(bert.folder, list(bert.adapters.values()))
    others = {name: Source.of(bert.adapters[name].folder) for name in ("topic", "stars")}
    model.keep_within(int(2.2 * max(s.nbytes for s in others.values())), others, (), ())
    model.load_task("mine", folder)
    wanted = answer(model, "mine")
    save("many")
    assert same(answer(model, "mine"), wanted)  # it is in memory
    for name in others:
        answer(model, name)
    assert "mine" not in model.status()["tasks"]
    with pytest.raises(ValueError, match=r"mine holds another adapter .* load_task\('mine'"):
        answer(model, "mine")
    model.load_task("mine", folder)
    assert same(answer(model, "mine"), answer(bert.model(), "many"))
    # ample: what the tests before this one left in the process counts too
    planned = DTSModel.from_pretrained(bert.folder, adapters={"mine": folder}, memory="16GiB")
    planned._shelf.residents.forget("mine")
    planned._delete("mine")
    save("mood")
    with pytest.raises(ValueError, match="mine holds another adapter"):
        planned.set_task("mine")


def test_nothing_is_loaded_into_a_model_that_is_merged_meanwhile(limited, monkeypatch):
    model, merging, go_on, loaded = limited(), threading.Event(), threading.Event(), []
    merge, load = model._merge_and_unload, model._load

    def slow(*given):
        merging.set()
        assert go_on.wait(60)
        return merge(*given)

    monkeypatch.setattr(model, "_merge_and_unload", slow)
    monkeypatch.setattr(model, "_load", lambda name, *rest: loaded.append(name) or load(name, *rest))
    thread = threading.Thread(target=model.merge_and_unload, args=("mood",))
    thread.start()
    assert merging.wait(60)
    late = model.prefetch("stars")
    with pytest.raises(TimeoutError):
        late.result(0.3)
    go_on.set()
    thread.join(60)
    with pytest.raises(ValueError, match="no task 'stars'"):
        late.result(60)
    assert loaded == ["mood"] and model.tasks == []


def test_what_is_no_name_is_no_task(limited):
    for wrong in (["mood"], {"mood": 1.0}, 3, None):
        with pytest.raises(ValueError, match="no task"):
            limited().prefetch(wrong)


def test_a_load_within_a_call_is_refused(limited):
    model = limited()
    answer(model, "mood")
    found = []

    def ask(module, args):
        if not found:
            found.append(None)
            with pytest.raises(RuntimeError, match="within a call of the model"):
                model(input_ids=IDS, tasks="topic")

    handle = model.model.bert.encoder.register_forward_pre_hook(ask)
    answer(model, "mood")
    handle.remove()
    assert found


def test_tasks_come_and_go_by_hand(bert, limited, tmp_path):
    model, whole = limited(), bert.model()
    answer(model, "mood")
    model.delete_task("mood")
    assert "mood" not in model.tasks
    with pytest.raises(ValueError, match=r"no task 'mood'; the tasks are \['topic'"):
        answer(model, "mood")
    model.delete_task("many")  # which was never loaded
    model.load_task("again", bert.adapters["mood"])
    assert same(answer(model, "again"), answer(whole, "mood"))
    model.load_task("again", bert.adapters["topic"].folder)
    assert same(answer(model, "again"), answer(whole, "topic"))
    with pytest.raises(ValueError, match="needs the adapter's folder"):
        model.load_task("entries", bert.adapters["mood"].entries)
    with pytest.raises(ValueError):
        model.load_task("nowhere", tmp_path)
    assert "nowhere" not in model.tasks


def test_what_needs_all_tasks_in_memory_says_so(limited, tmp_path):
    model = limited()
    for run in (
        lambda: model.choose_tasks({"input_ids": IDS}),
        lambda: model.calibrate_tasks({"input_ids": IDS}),
        lambda: model.save_pretrained(tmp_path / "x", what="adapters"),
    ):
        with pytest.raises(ValueError, match="needs every task in memory"):
            run()


def test_predictions_merging_and_copies(bert, limited, tmp_path):
    model, whole = limited(), bert.model()
    rows = ["topic", "mood", "mood", "topic"]
    found = [m.predict({"input_ids": IDS}, rows) for m in (model, whole)]
    assert [one.label for one in found[0]] == [one.label for one in found[1]]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(answer(twin, "stars"), answer(whole, "stars"))
        assert twin.status()["tasks"] != model.status()["tasks"]
    model.set_task("many")
    model.save_pretrained(tmp_path / "many")
    merged = model.merge_and_unload("mood")
    with torch.no_grad():
        assert torch.equal(merged(input_ids=IDS).logits, whole.merge_and_unload("mood")(input_ids=IDS).logits)


def test_all_that_is_wrong_with_what_is_loaded_first_is_said_at_once(bert):
    sources = {name: Source(bert.folder / "no" / name, 100) for name in ("x", "y")}
    model = DTSModel._of_base(bert.folder, list(bert.adapters.values()))
    with pytest.raises(ValueError, match="task 'x'.*task 'y'"):
        model.keep_within(1000, sources, ["x", "y"])


def test_a_folder_is_the_one_that_was_meant_whatever_the_current_one_is(bert, limited, tmp_path, monkeypatch):
    whole, model = bert.model(), limited()
    monkeypatch.chdir(bert.adapters["mood"].folder.parent)
    model.load_task("more", "mood")
    bert.adapters["topic"].save(tmp_path / "mood")
    monkeypatch.chdir(tmp_path)
    for task in bert.adapters:
        answer(model, task)
    assert "more" not in model.status()["tasks"]
    assert same(answer(model, "more"), answer(whole, "mood"))


def test_a_task_that_is_deleted_while_others_ask_for_it_is_no_task(limited):
    model = limited(room=1.2)
    shelf = model._shelf
    forget = shelf.residents.forget

    def asked_meanwhile(name):
        was = forget(name)
        with pytest.raises(ValueError, match="no task 'mood'"):
            answer(model, "mood")
        return was

    shelf.residents.forget = asked_meanwhile
    answer(model, "mood")
    model.delete_task("mood")
    assert "mood" not in shelf.residents.loaded and "mood" not in model.status()["tasks"]
    with pytest.raises(ValueError, match="no task 'mood'"):
        shelf.bring("mood")


def test_a_load_that_fails_says_why_though_the_name_was_deleted_meanwhile(bert, limited):
    model = limited()
    shelf, adapter = model._shelf, bert.adapters["mood"]

    def fails(name):
        del shelf.sources[name]  # as another thread does
        raise OSError("no such disk")

    shelf.bring = fails
    with pytest.raises(OSError, match="no such disk"):
        shelf.put("new", Source(adapter.folder, bytes_at(adapter.folder)))
    assert "new" not in shelf.sources
