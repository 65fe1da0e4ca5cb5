"""The engine, without HTTP: every answer is the single-task model's, and no request harms another."""

import logging
import threading
import time

import pytest
import torch
import transformers

import dts
from dts.nn.altered import mapped_of
from dts.nn.sizes import bytes_at
from dts.serve import memory
from dts.serve.catalogue import Catalogue
from dts.serve.choice import choice_of
from dts.serve.options import Options
from dts.serve.refused import Refused
from dts.serve.start import _bytes, serve
from dts.serve.texts import Text
from dts.serve.waiting import Batching
from tests.dts.serve.asking import alone, ask, texts
from tests.dts.serve.conftest import Place, changed, tokenizer

MODELS = ["a", "b", "base", "a:0.7,b:0.3", "c"]


def test_a_batch_of_all_tasks_says_what_each_single_task_model_says(decoder, start):
    served = start(decoder, run=False)
    prompts = ["hi", "a longer prompt", "x", "of another length", "yes?"]
    jobs = [
        ask(served, "generate", m, p, max_tokens=6 + i, temperature=0) for i, (m, p) in enumerate(zip(MODELS, prompts))
    ]
    served.engine.start()
    found = [texts(job)[0] for job in jobs]
    expected = [alone(decoder, served, m, p, 6 + i) for i, (m, p) in enumerate(zip(MODELS, prompts))]
    assert found == expected and len(set(found)) > 2
    assert served.engine.batches == 11  # one a token of the longest, as all ran together; "x" began in one of its own


def test_an_answer_that_does_not_stream_is_told_in_one_piece(decoder, start):
    served = start(decoder)
    how = dict(max_tokens=9, temperature=0, scores=1)
    pieces = ask(served, "generate", "b", "hello", **how).collected.events()
    job = ask(served, "generate", "b", "hello", submit=False, **how)
    job.whole = True
    served.engine.submit(job)
    (piece,) = job.collected.events()
    assert len(pieces) > 1 and piece.text == "".join(one.text for one in pieces)
    assert [one.token for one in piece.scored] == [one.token for each in pieces for one in each.scored]
    assert (piece.tokens, piece.finish) == (pieces[-1].tokens, pieces[-1].finish)


def test_the_time_between_tokens_is_each_rows_own(decoder, start, monkeypatch):
    """Not the time since another row of its request had one."""
    served, seconds = start(decoder, run=False), []
    job = ask(served, "generate", "a", "x", "y", submit=False, max_tokens=5)
    job.arrived = 100.0
    monkeypatch.setattr(served.engine.observer, "token", lambda row, took: seconds.append(took))
    with monkeypatch.context() as patch:
        for now in (101.0, 103.0):
            patch.setattr("dts.serve.engine.time.monotonic", lambda now=now: now)
            for row in job.rows:
                served.engine._token(row)
    assert seconds == [1, 1, 2, 2] and job.last_token == 103


def test_an_encoder_decoder_generates_in_batches_of_whole_calls(tmp_path, start):
    torch.manual_seed(2)
    sizes = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64)
    ids = dict(bos_token_id=1, eos_token_id=1, pad_token_id=0, decoder_start_token_id=1, forced_eos_token_id=None)
    base = transformers.BartForConditionalGeneration(transformers.BartConfig(vocab_size=258, **sizes, **heads, **ids))
    base.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    place = Place(tmp_path, ["a", "b"])
    for seed, name in enumerate(place.tasks):
        changed(base, seed).save_pretrained(tmp_path / name)
        dts.compress(place.base, tmp_path / name, out=place.adapters / name, rank_fraction=0.5)
    served = start(place, run=False)
    asked = {"a": "short", "b": "a longer text", "base": "x"}
    jobs = [ask(served, "generate", m, text, max_tokens=40, temperature=0, scores=0) for m, text in asked.items()]
    served.engine.start()
    for job, text in zip(jobs, asked.values()):
        ids = torch.tensor([served.texts.base.encode(text)])
        out = place.single(*job.choice.weights).generate(ids, max_new_tokens=40, do_sample=False)
        pieces = job.collected.events()
        assert "".join(piece.text for piece in pieces) == served.texts.base.decode(out[0, 1:].tolist())
        assert [one.token for piece in pieces for one in piece.scored] == [i for i in out[0, 1:].tolist() if i != 1]
    assert served.engine.continuous is None


def test_seeds_repeat_whatever_else_is_in_the_batch(decoder, start):
    served = start(decoder)
    how = dict(max_tokens=12, temperature=1.0, top_p=0.9, seed=7)
    first = texts(ask(served, "generate", "a", "same", **how))
    jobs = [ask(served, "generate", "b", "other", max_tokens=20, temperature=2.0) for _ in range(3)]
    assert texts(ask(served, "generate", "a", "same", **how)) == first
    assert texts(ask(served, "generate", "a", "same", **how | {"seed": 8})) != first
    for job in jobs:
        texts(job)


def test_answers_end_before_a_stop_string(decoder, start):
    served = start(decoder)
    whole = texts(ask(served, "generate", "a", "hello", max_tokens=16, temperature=0))[0]
    stop = whole[4:6]
    job = ask(served, "generate", "a", "hello", max_tokens=16, temperature=0, stop=(stop,))
    events = job.collected.events()
    assert "".join(e.text for e in events) == whole[: whole.find(stop)] and events[-1].finish == "stop"
    assert events[-1].tokens < 16


@pytest.mark.parametrize("left_out", [False, True])
def test_encoders_answer_each_row_as_its_single_task_model(encoder, start, left_out):
    served = start(encoder, run=False)
    prompts = ["short", "a somewhat longer text", "mid size", "another"]
    models = ["mood", "topic", "topic", "mood"]
    kinds = ["classify"] * 4 if not left_out else ["embed"] * 4
    jobs = [ask(served, kind, m, p) for kind, m, p in zip(kinds, models, prompts)]
    if left_out:
        jobs.append(ask(served, "embed", "base", "of the base"))
    served.engine.start()
    for job, prompt in zip(jobs, [*prompts, "of the base"]):
        single = encoder.single(*job.choice.weights)
        ids = torch.tensor([served.texts.base.encode(prompt)])
        with torch.no_grad():
            if left_out:
                states = single.base_model(ids).last_hidden_state[0].mean(0)
                expected = torch.nn.functional.normalize(states, dim=0)
            else:
                expected = single(ids).logits[0]
        (value,) = job.collected.events()
        assert torch.allclose(torch.tensor(value.value), expected, atol=1e-5)
    assert served.engine.batches == 1


def test_a_row_that_cannot_be_answered_harms_no_other(encoder, start):
    served = start(encoder, run=False)
    bad = ask(served, "classify", "base", "no head")
    mixed = ask(served, "classify", "mood:0.5,topic:0.5", "two widths")
    good = ask(served, "classify", "mood", "fine")
    served.engine.start()
    assert len(good.collected.events()[0].value) == 2
    for job in (bad, mixed):
        with pytest.raises(Refused, match="has no 'classifier'|different shapes") as error:
            job.collected.events()
        assert error.value.status == 400
    assert served.engine.alive


def test_unknown_damaged_and_foreign_adapters_are_refused_by_name(decoder, encoder, start, tmp_path):
    import shutil

    place = tmp_path / "adapters"
    shutil.copytree(decoder.adapters, place)
    shutil.copytree(encoder.adapters / "mood", place / "foreign")
    data = bytearray((place / "b" / "dts_model.safetensors").read_bytes())
    data[-1] ^= 1
    (place / "b" / "dts_model.safetensors").write_bytes(data)
    (place / "c" / "dts_config.json").write_text("{")
    served = serve(Options(str(decoder.base), place, device="cpu"))
    served.engine.start()
    for model, status, words in [
        ("nobody", 404, "'nobody' does not exist; there are a, b, base"),
        ("../a", 404, "does not exist"),
        ("..", 404, "does not exist"),
        ("a/../a", 404, "does not exist"),
        ("b", 409, "altered"),
        ("c", 409, "damaged"),
        ("foreign", 400, "of another base"),
        ("a:0.5,b:0.5", 409, "altered"),
    ]:
        with pytest.raises(Refused, match=words) as error:
            ask(served, "generate", model, [5, 6], max_tokens=2).collected.events()
        assert error.value.status == status and str(tmp_path) not in str(error.value)
    assert texts(ask(served, "generate", "a", "still", max_tokens=3, temperature=0))
    assert served.engine.drain(30)


def test_a_link_that_leads_out_of_the_folder_is_no_adapter(decoder, tmp_path):
    place = tmp_path / "adapters"
    place.mkdir()
    (place / "out").symlink_to(decoder.adapters / "a")
    catalogue = Catalogue(place, "base", "")
    assert catalogue.names() == []
    for name, path in [
        ("out", None),
        ("x", "../../etc"),
        ("x", str(decoder.adapters / "a")),
        ("x", "."),
        ("x/y", "out"),
        ("x", "y" * 300),  # longer than a file's name may be
        ("x", "y/" * 3000),
    ]:
        with pytest.raises(Refused):
            catalogue.give(name, path)
    with pytest.raises(Refused, match="does not exist"):
        catalogue.get("out")


def test_of_folders_that_are_no_links_none_is_followed(decoder, monkeypatch):
    """To follow each of 5,000 took 160 ms of every error that lists some of them."""
    from dts.serve import catalogue

    found = catalogue.Catalogue(decoder.adapters, "base", None)
    monkeypatch.setattr(catalogue, "real", None)
    assert found.names() == decoder.tasks


def test_memory_keeps_the_pinned_and_the_last_used(decoder, start):
    size = bytes_at(decoder.adapters / "a")
    served = start(decoder, memory=int(2.5 * size), pinned=("a",))
    loaded = served.engine.residents.loaded
    assert list(loaded) == ["a"]
    for name in ("b", "c", "b"):
        said = texts(ask(served, "generate", name, "one", max_tokens=4, temperature=0))
        assert said == [alone(decoder, served, name, "one", 4)]
        assert set(loaded) == {"a", name} and served.engine.residents.nbytes <= 2.5 * size
    with pytest.raises(Refused, match="do not fit beside") as error:
        ask(served, "generate", "b:0.5,c:0.5", "x", max_tokens=2).collected.events()
    assert error.value.status == 507


def test_memory_that_nobody_says_is_half_of_what_is_free(decoder, start, monkeypatch, caplog):
    size, free = bytes_at(decoder.adapters / "a"), dict[str, int | None](now=None)
    monkeypatch.setattr(memory, "available", lambda device: free["now"])
    caplog.set_level(logging.INFO, "dts.serve")
    model = start(decoder).engine.model.model
    assert "adapters stay in memory" in caplog.text and "--memory" in caplog.text
    mapped = _bytes(model) if mapped_of(model) else 0  # pages that count as free, and are the base's
    free["now"] = mapped + 5 * size
    served = start(decoder)
    assert served.options.memory == served.engine.residents.memory == 5 * size // 2
    assert "at most" in caplog.text and "--memory says otherwise" in caplog.text
    for name in "abcabc":
        texts(ask(served, "generate", name, "one", max_tokens=1))
        assert served.engine.residents.nbytes <= served.options.memory and len(served.engine.residents.loaded) <= 2
    free["now"] = 0  # what is asked for alone, and what is pinned, has room
    assert start(decoder, pinned=("b",)).options.memory == size + bytes_at(decoder.adapters / "b")


def test_tasks_that_do_not_fit_together_come_one_batch_after_the_other(decoder, start):
    size = bytes_at(decoder.adapters / "a")
    served = start(decoder, run=False, memory=int(1.5 * size))
    jobs = [ask(served, "generate", name, "p", max_tokens=4, temperature=0) for name in "abcab"]
    served.engine.start()
    assert [texts(job)[0] for job in jobs] == [alone(decoder, served, name, "p", 4) for name in "abcab"]


def test_a_full_queue_refuses_all_rows_of_a_request(decoder, start):
    served = start(decoder, run=False, batching=Batching(queue=3))
    jobs = [ask(served, "generate", "a", "x", "y", max_tokens=1)]
    with pytest.raises(Refused) as error:
        ask(served, "generate", "a", "x", "y", max_tokens=1)
    assert error.value.status == 429 and error.value.retry_after
    jobs.append(ask(served, "generate", "a", "z", max_tokens=1))
    served.engine.start()
    assert [len(texts(job)) for job in jobs] == [2, 1]


def test_who_is_gone_is_not_answered_and_room_is_made(decoder, start):
    served = start(decoder, run=False, batching=Batching(queue=1))
    ask(served, "generate", "a", "x", max_tokens=1).cancel()
    job = ask(served, "generate", "a", "y", max_tokens=100, temperature=0)
    seen = threading.Event()
    told, job.tell = job.tell, lambda event: (seen.set(), told(event))
    served.engine.start()
    assert seen.wait(60)
    job.cancel()
    assert texts(ask(served, "generate", "a", "z", max_tokens=1, temperature=0))
    assert job.over and job.rows[0].tokens < 100


def test_what_waits_or_runs_too_long_is_told_so(decoder, start):
    served = start(decoder, run=False)
    late = ask(served, "generate", "a", "x", max_tokens=1, seconds=0.0)
    served.engine.start()
    with pytest.raises(Refused, match="waited longer"):
        late.collected.events()
    with pytest.raises(Refused, match="took longer") as error:
        job = ask(served, "generate", "a", "x", max_tokens=100, temperature=0, submit=False)
        told = job.tell

        def tell(event):  # the first token has come: the time is up
            told(event)
            job.deadline = 0.0

        job.tell = tell
        served.engine.submit(job)
        job.collected.events()
    assert error.value.status == 504


def test_draining_answers_what_was_taken_in_and_takes_in_nothing(decoder, start):
    served = start(decoder, run=False)
    jobs = [ask(served, "generate", name, "x", max_tokens=5, temperature=0) for name in "abc"]
    served.engine.start()
    assert served.engine.drain(60)
    assert all(len(texts(job)) == 1 for job in jobs)
    with pytest.raises(Refused) as error:
        ask(served, "generate", "a", "x", max_tokens=1)
    assert error.value.status == 503


def test_who_was_not_answered_when_the_time_to_stop_is_over_is_told_so(decoder, start):
    served = start(decoder, run=False, batching=Batching(rows=1))
    jobs = [ask(served, "generate", "a", "x", submit=False, max_tokens=100, temperature=0) for _ in range(3)]
    told, first = jobs[0].tell, []

    def tell(event):  # the first token has come: the time is up
        told(event)
        if not first:
            first.append(event)
            served.engine.give_up()

    jobs[0].tell = tell
    for job in jobs:
        served.engine.submit(job)
    served.engine.start()
    for job in jobs:
        with pytest.raises(Refused, match="the server is stopping, before this was answered") as refused:
            job.collected.events()
        assert refused.value.status == 503


def test_rows_on_their_way_from_the_queue_are_told_too_and_others_are_not_taken_in(decoder, start, monkeypatch):
    served = start(decoder, run=False)
    jobs = [ask(served, "generate", name, "x", max_tokens=100, temperature=0) for name in "abc"]
    have, told = served.engine.residents.have, []

    def have_and_stop(*given):
        have(*given)
        if not told:
            told.append(served.engine.give_up())

    monkeypatch.setattr(served.engine.residents, "have", have_and_stop)
    served.engine._thread.start()
    for job in jobs:
        with pytest.raises(Refused, match="the server is stopping, before this was answered"):
            job.collected.events(timeout=20)
    assert told == [3]
    with pytest.raises(Refused, match="the server is stopping") as refused:
        ask(served, "generate", "a", "x", max_tokens=1)
    assert refused.value.status == 503


def test_a_command_for_which_there_is_no_time_is_told_so(decoder, start):
    served = start(decoder)
    running = ask(served, "generate", "a", "x", submit=False, max_tokens=100, temperature=0)
    tell, said = running.tell, []

    def load():
        try:
            served.engine.load("a", again=True)
        except Refused as error:
            said.append((error.status, str(error)))

    loads = threading.Thread(target=load)

    def stop(event):  # by the engine's thread, in the middle of a step
        running.tell = tell
        loads.start()
        while not served.engine.waiting._commands:
            time.sleep(0.01)
        assert served.engine.give_up() == 1
        loads.join(20)

    running.tell = stop
    served.engine.submit(running)
    with pytest.raises(Refused, match="the server is stopping"):
        running.collected.events()
    loads.join(20)
    assert said == [(503, "the server is stopping, before this was done")]


def test_an_error_in_the_model_fails_its_request_and_not_the_engine(decoder, start, monkeypatch):
    served = start(decoder)
    with monkeypatch.context() as patch:
        patch.setattr(served.engine.continuous, "_forward", lambda rows, counts: 1 / 0)
        with pytest.raises(Refused, match="internal error") as error:
            ask(served, "generate", "a", "x", max_tokens=1).collected.events()
        assert error.value.status == 500 and "division" not in str(error.value)
    assert texts(ask(served, "generate", "a", "x", max_tokens=1, temperature=0))


def test_models_that_run_once_a_task_generate_once_a_task(decoder, start, monkeypatch):
    from dts.nn.rows import RowAxes

    served = start(decoder, run=False)
    names = ["a", "b", "a"]
    jobs = [ask(served, "generate", m, "xy", max_tokens=4, temperature=0) for m in names]
    layers = served.engine.model._layers
    grouped = lambda *_, **__: RowAxes(unroutable=dict.fromkeys(layers, "a test says so"))  # noqa: E731
    monkeypatch.setattr(served.engine.model._known_calls, "where", grouped)
    served.engine.residents.have(["a", "b"])
    layers.update(served.engine.model._layers)
    served.engine.start()
    assert [texts(job)[0] for job in jobs] == [alone(decoder, served, m, "xy", 4) for m in names]
    assert not served.engine.continuous.together


def test_the_model_is_prepared_before_anybody_asks(decoder, start):
    engine = start(decoder).engine
    assert engine.model._layers and not engine.model.tasks and not engine.residents.loaded


def test_a_task_that_has_no_room_does_not_keep_the_server_from_starting(decoder, start, monkeypatch):
    served = start(decoder, run=False)
    load, asked = served.engine.model.load_task, []

    def once_full(*given):
        asked.append(given)
        if len(asked) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return load(*given)

    monkeypatch.setattr(served.engine.model, "load_task", once_full)
    served.engine.start()
    assert texts(ask(served, "generate", "a", "x", max_tokens=1, temperature=0)) and len(asked) > 1


def test_what_was_read_about_an_adapter_is_read_again_only_where_it_changed(decoder, tmp_path, monkeypatch):
    from dts.adapter import folder as reading

    found, described = [], reading._described
    monkeypatch.setattr(reading, "_described", lambda folder: found.append(folder) or described(folder))
    mine, (a, b) = tmp_path / "mine", (dts.Adapter.load(decoder.adapters / name) for name in "ab")
    a.save(mine)
    catalogue, _ = Catalogue(tmp_path, "base", None), found.clear()
    catalogue.get("mine")
    assert catalogue.load("mine").digest == a.digest and len(found) == 1
    assert catalogue.load("mine").digest == a.digest and len(found) == 2  # it is of use once
    b.save(mine, overwrite=True)
    catalogue.get("mine")
    a.save(mine, overwrite=True)
    assert catalogue.load("mine").digest == a.digest  # what was read was of b
    b.save(mine, overwrite=True)
    catalogue.get("mine")
    with (mine / "dts_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    with pytest.raises(Refused, match="altered") as refused:
        catalogue.load("mine")
    assert refused.value.status == 409


def test_admin_loads_again_under_other_names_and_lets_go(decoder, start, tmp_path):
    import shutil

    place = tmp_path / "adapters"
    shutil.copytree(decoder.adapters, place)
    served = serve(Options(str(decoder.base), place, device="cpu"))
    engine = served.engine
    engine.start()
    say = lambda name: texts(ask(served, "generate", name, "xy", max_tokens=6, temperature=0))[0]  # noqa: E731
    a, b = say("a"), say("b")
    assert a != b
    engine.load("other", "a", pin=True)
    assert say("other") == a and "other" in served.catalogue.names()
    with pytest.raises(Refused, match="loaded already"):
        engine.load("other", "b")
    engine.load("other", "b", again=True)
    assert say("other") == b
    with pytest.raises(Refused, match="not in the folder"):
        engine.load("other", "../elsewhere", again=True)
    assert say("other") == b
    engine.unload("other")
    with pytest.raises(Refused, match="does not exist"):
        say("other")
    shutil.rmtree(place / "a")
    shutil.copytree(place / "b", place / "a")
    assert say("a") == a  # what is in memory stays
    engine.load("a", again=True)
    assert say("a") == b
    engine.unload("a")
    assert "a" not in engine.residents.loaded and say("a") == b
    with pytest.raises(Refused, match="not loaded"):
        engine.unload("nobody")
    assert engine.drain(30)


def test_a_task_speaks_by_the_tokenizer_that_it_brings(decoder, tmp_path):
    import shutil

    place = tmp_path / "adapters"
    shutil.copytree(decoder.adapters, place)
    shutil.copytree(decoder.base.parent / "a", tmp_path / "own")
    tokenizer("own:{{ messages[0].content }}").save_pretrained(tmp_path / "own")
    dts.compress(decoder.base, tmp_path / "own", out=place / "own", rank_fraction=0.5)
    served = serve(Options(str(decoder.base), place, device="cpu"))
    chat = [{"role": "user", "content": "x"}]
    said = {m: served.texts.of(choice_of(m, "base")).chat(chat) for m in ("base", "a", "own")}
    encode = served.texts.base.encode
    assert said == {"base": encode("<user>x<assistant>"), "a": encode("<user>x<assistant>"), "own": encode("own:x")}
    with pytest.raises(Refused, match="different tokenizers"):
        served.texts.of(choice_of("a:0.5,own:0.5", "base"))
    assert served.texts.own("own") and not served.texts.own("a") and not served.texts.own("nobody")
    (place / "own" / "chat_template.jinja").write_text("altered")
    again = serve(Options(str(decoder.base), place, device="cpu"))
    with pytest.raises(Refused, match="chat_template.jinja") as error:
        again.texts.of(choice_of("own", "base"))
    assert error.value.status == 409


@pytest.mark.gpu
def test_on_a_gpu_a_batch_says_what_each_single_task_model_says(decoder, start):
    served = start(decoder, run=False, device="cuda")
    jobs = [ask(served, "generate", m, "hello", max_tokens=6, temperature=0) for m in MODELS]
    served.engine.start()
    assert [texts(job)[0] for job in jobs] == [alone(decoder, served, m, "hello", 6) for m in MODELS]


def test_tokenizer_files_that_make_the_same_tokens_are_not_another_tokenizer(decoder, tmp_path):
    """A trainer writes its own: other lengths, other words for the same, and no other token of any text."""
    import shutil

    place = tmp_path / "adapters"
    shutil.copytree(decoder.adapters, place)
    shutil.copytree(decoder.base.parent / "a", tmp_path / "shorter")
    written = transformers.AutoTokenizer.from_pretrained(decoder.base, model_max_length=24)
    written("some text", truncation=True, padding="max_length", max_length=5)  # which its file keeps
    written.save_pretrained(tmp_path / "shorter")
    dts.compress(decoder.base, tmp_path / "shorter", out=place / "shorter", rank_fraction=0.5)
    served = serve(Options(str(decoder.base), place, device="cpu"))
    assert "tokenizer_config.json" in served.catalogue.get("shorter").config["files"]
    assert not served.texts.own("shorter") and served.texts.of(choice_of("shorter", "base")).longest == 24
    assert served.texts.of(choice_of("a:0.5,shorter:0.5", "base")).longest == 24


def test_tokenizers_that_end_or_open_answers_otherwise_are_different(decoder):
    """Their tokenizer.json may be the same: what a token is for is in tokenizer_config.json."""
    load = transformers.AutoTokenizer.from_pretrained
    words = Text(load(decoder.base)).words
    assert words == Text(load(decoder.base, pad_token="<end>")).words  # padding is no part of a text
    for other in (load(decoder.base, eos_token="<pad>"), load(decoder.base, bos_token="<pad>")):
        assert Text(other).words != words


def test_auto_says_that_every_task_has_a_tokenizer_of_its_own(decoder, tmp_path):
    import shutil

    place = tmp_path / "adapters"
    place.mkdir()
    shutil.copytree(decoder.base.parent / "a", tmp_path / "own")
    tokenizer("own:{{ messages[0].content }}").save_pretrained(tmp_path / "own")
    dts.compress(decoder.base, tmp_path / "own", out=place / "own", rank_fraction=0.5)
    served = serve(Options(str(decoder.base), place, device="cpu"))
    served.engine.start()
    with pytest.raises(Refused, match="makes other tokens than the base's"):
        texts(ask(served, "generate", "auto", "x", max_tokens=1, temperature=0))
    assert served.engine.drain(30)
