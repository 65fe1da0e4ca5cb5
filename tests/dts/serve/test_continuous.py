"""Rows join and leave at any token, and each is answered as by its single-task model."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch
import transformers

import dts
from dts.nn.sizes import bytes_at
from dts.serve.answer import Answer
from dts.serve.choice import Choice
from dts.serve.continuous import Continuous, why_not
from dts.serve.job import Collected, Job
from dts.serve.options import Options
from dts.serve.refused import Refused
from dts.serve.sampling import Sampling, Scored
from dts.serve.start import serve
from dts.serve.waiting import Batching
from tests.dts.serve.asking import alone, ask, texts, whole
from tests.versions import TRANSFORMERS_5_0

GREEDY = dict(temperature=0)


def at_token(job, number, then):
    """Have something done when a job has so many tokens, in the engine's thread."""
    told, seen = job.tell, []

    def tell(event):
        told(event)
        if getattr(event, "tokens", 0) >= number and not seen:
            seen.append(True)
            then()

    job.tell = tell


def test_a_row_joins_others_and_leaves_before_them(decoder, start):
    served, order = start(decoder), []
    long = ask(served, "generate", "a", "a long one", submit=False, max_tokens=60, **GREEDY)
    short = ask(served, "generate", "b", "short", submit=False, max_tokens=3, **GREEDY)
    at_token(long, 5, lambda: served.engine.submit(short))
    at_token(short, 3, lambda: order.append((short.rows[0].tokens, long.rows[0].tokens)))
    served.engine.submit(long)
    said = texts(short), texts(long)
    assert said == ([alone(decoder, served, "b", "short", 3)], [alone(decoder, served, "a", "a long one", 60)])
    assert order == [(3, order[0][1])] and 5 < order[0][1] < 15


def test_whatever_comes_and_goes_answers_are_those_of_single_task_models(decoder, start):
    served = start(decoder, batching=Batching(rows=5, prefill=8, queue=64))
    models = ["a", "b", "base", "c", "a:0.7,b:0.3"]
    asked = [(models[i % 5], "x" * (1 + 7 * i % 23) + str(i), 1 + 5 * i % 17) for i in range(24)]
    jobs = [ask(served, "generate", model, prompt, max_tokens=tokens, **GREEDY) for model, prompt, tokens in asked]
    for job, (model, prompt, tokens) in zip(jobs, asked):
        assert texts(job) == [alone(decoder, served, model, prompt, tokens)]
    running = served.engine.continuous
    while served.engine.running:
        time.sleep(0.01)
    assert running.nbytes == 0  # of rows that have gone nothing is kept
    assert running.forwards < sum(tokens for *_, tokens in asked)


def test_the_next_token_is_not_far_behind_a_long_prompt(decoder, start):
    served = start(decoder, batching=Batching(prefill=10))
    running, seen = served.engine.continuous, []
    talks = ask(served, "generate", "a", "talks", submit=False, max_tokens=40, **GREEDY)
    reads = ask(served, "generate", "b", "r" * 80, submit=False, max_tokens=1, **GREEDY)
    at_token(talks, 4, lambda: (seen.append(running.forwards), served.engine.submit(reads)))
    at_token(reads, 1, lambda: seen.append(running.forwards))
    served.engine.submit(talks)
    assert texts(reads) == [alone(decoder, served, "b", "r" * 80, 1)] and texts(talks)
    assert seen[1] - seen[0] >= 2 * 7  # eight parts of the prompt, and a token of the other row after each


def test_a_task_that_is_loaded_again_meets_no_old_keys(decoder, tmp_path):
    import shutil

    place = tmp_path / "adapters"
    shutil.copytree(decoder.adapters, place)
    served = serve(Options(str(decoder.base), place, device="cpu"))
    engine = served.engine
    engine.start()
    old, new = (alone(decoder, served, name, "same", 40) for name in "ac")
    loads, at = [], []
    job = ask(served, "generate", "a", "same", submit=False, max_tokens=40, **GREEDY)

    def load():
        shutil.rmtree(place / "a")
        shutil.copytree(place / "c", place / "a")
        loads.append(threading.Thread(target=lambda: (engine.load("a", again=True), at.append(job.rows[0].tokens))))
        loads[0].start()

    at_token(job, 3, load)
    engine.submit(job)
    assert texts(job) == [old]  # it ends as it began, and the load waits for that
    loads[0].join(60)
    assert at == [job.rows[0].tokens] and texts(ask(served, "generate", "a", "same", max_tokens=40, **GREEDY)) == [new]
    job = ask(served, "generate", "a", "same", submit=False, max_tokens=40, **GREEDY)
    adapter = dts.Adapter.load(decoder.adapters / "b")
    at_token(job, 3, lambda: engine.model.load_task("a", adapter))  # past the engine: never mixed, never silent
    engine.submit(job)
    with pytest.raises(Refused, match="loaded again while it ran"):
        job.collected.events()
    assert engine.drain(30)


def test_rows_of_a_task_that_has_to_go_do_not_begin(decoder, start):
    served = start(decoder)
    engine = served.engine
    job = ask(served, "generate", "a", "x", submit=False, max_tokens=30, **GREEDY)
    late = ask(served, "generate", "a", "y", submit=False, max_tokens=2, **GREEDY)
    auto = ask(served, "generate", "auto", "y", submit=False, max_tokens=2, **GREEDY)  # which may choose it
    other = ask(served, "generate", "b", "z", submit=False, max_tokens=2, **GREEDY)
    ended = []
    for one, name in ((job, "job"), (late, "late"), (auto, "auto"), (other, "other")):
        at_token(one, one.rows[0].draws.sampling.max_tokens, lambda name=name: ended.append(name))
    unloads = threading.Thread(target=lambda: engine.unload("a"))

    def then():
        unloads.start()
        while not engine.waiting._commands:
            time.sleep(0.001)
        for one in (late, auto, other):
            engine.submit(one)

    at_token(job, 2, then)
    engine.submit(job)
    assert texts(job) and texts(other) and texts(late) == [alone(decoder, served, "a", "y", 2)]
    assert texts(auto)
    unloads.join(30)
    assert ended[:2] == ["other", "job"] and sorted(ended[2:]) == ["auto", "late"]


def drive(model, *rows, **batching):
    """A `Continuous` without an engine; rows: (ids, tokens, choice)."""
    jobs = []
    for ids, tokens, choice in rows:
        job = Job("x", "generate", choice, Collected(), time.monotonic() + 60)
        job.add(ids, Sampling(tokens, temperature=0), lambda ids: "".join(f"{i} " for i in ids))
        jobs.append(job)
    running = Continuous(model, 0, Answer((), lambda row: None), Batching(**batching), lambda row, error: 1 / 0)
    return running, jobs


def said(job):
    """The ids that a job of `drive` was answered with."""
    return [int(token) for token in "".join(event.text for event in job.tell.events()).split()]


def test_what_is_no_number_stays_with_its_row(decoder):
    model = dts.DTSModel.from_pretrained(decoder.base)
    base = Choice("base")
    running, (long, short, later) = drive(model, ([5, 6], 30, base), ([7], 2, base), ([9, 8, 7], 8, base))
    running.join([long.rows[0], short.rows[0]])
    while not short.over:
        running.step()
    for kept in (*running._cache._keys, *running._cache._values):
        kept[1] = torch.nan
    running.join(later.rows)
    while not later.over:
        running.step()
    assert said(later) == whole(model.model, [9, 8, 7], 8)


def test_a_row_that_takes_the_place_of_another_meets_none_of_its_keys(decoder):
    """One that joined and is not read yet moves to a line that holds what is no number, beside a longer row."""
    model, base = dts.DTSModel.from_pretrained(decoder.base), Choice("base")
    running, (bad, long, later) = drive(model, ([5, 6], 30, base), ([7] * 40, 30, base), ([9, 8, 7], 8, base))
    running.join([bad.rows[0], long.rows[0]])
    running.step()
    for kept in (*running._cache._keys, *running._cache._values):
        kept[0] = torch.nan
    bad.rows[0].done = True
    running.join(later.rows)
    while not later.over:
        running.step()
    assert said(later) == whole(model.model, [9, 8, 7], 8)


def test_many_short_rows_and_then_a_long_one_take_no_more_keys_than_are_allowed(decoder):
    """Nor many short ones after it: lines that nobody uses do not grow, and places that nobody uses are let go."""
    model, base = dts.DTSModel.from_pretrained(decoder.base), Choice("base")
    asked = [([5 + i], 4, base) for i in range(15)] + [([40], 60, base), ([7] * 480, 4, base)]
    asked += [([5 + i, 6], 6, base) for i in range(15)]
    running, jobs = drive(model, *asked, rows=16, tokens=1024, prefill=512)
    a_token = 2 * sum(weight.nbytes for weight in (torch.zeros(2, 32),))  # keys and values of two layers of 32
    for several in (jobs[:16], jobs[16:17], jobs[17:]):
        new = []
        for job in several:
            assert running.fits(new, job.rows[0])
            new += job.rows
        running.join(new)
        while not all(job.over for job in several if job is not jobs[15]):
            running.step()
            assert running.nbytes <= 2 * 1024 * a_token
    while not jobs[15].over:
        running.step()
    for job, (prompt, tokens, _) in zip(jobs, asked):
        assert said(job) == whole(model.model, prompt, tokens)


def test_prompts_are_read_beside_those_nearest_in_length_and_the_oldest_first(decoder):
    """Also where another row has taken the line before it."""
    model, base = dts.DTSModel.from_pretrained(decoder.base), Choice("base")
    lengths = [3, 30, 4, 31, 29, 5, 2, 28]
    running, jobs = drive(model, *[([5 + i] * n, 3, base) for i, n in enumerate(lengths)], prefill=96)
    seen, forward = [], running._forward
    running._forward = lambda rows, counts: (seen.append((len(rows), max(counts))), forward(rows, counts))
    for place, job in enumerate(jobs):
        job.arrived = place
    rows = [job.rows[0] for job in jobs]
    running.join([rows[1], *rows[2:], rows[0]])  # the oldest one is in the last line
    running.step()
    assert seen[0] == (4, 5) and [job.rows[0].tokens for job in jobs] == [1, 0, 1, 0, 0, 1, 1, 0]
    while running.rows:
        running.step()
    assert (3, 31) in seen
    for job, n in zip(jobs, lengths):
        assert said(job) == whole(model.model, [5 + jobs.index(job)] * n, 3)


SMALL = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
KNOWN = {
    "Mistral": (SMALL | dict(intermediate_size=64, num_key_value_heads=2, sliding_window=8), ""),
    "Gemma3Text": (SMALL | dict(intermediate_size=64, num_key_value_heads=2, head_dim=8, sliding_window=8), ""),
    "GPT2": (dict(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64), ""),
    "Falcon": (SMALL, ""),
    "GPTNeo": (
        dict(vocab_size=99, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]])
        | dict(window_size=4),
        "other logits",
    ),
    "Mamba": (
        dict(vocab_size=99, hidden_size=32, num_hidden_layers=2),
        "takes no cache" if TRANSFORMERS_5_0 else "linear_attention",
    ),
    "Bloom": (dict(vocab_size=99, hidden_size=32, n_layer=2, n_head=4), " "),
}


@pytest.mark.parametrize("coupled", [False, True])
def test_rows_of_different_lengths_in_a_model_that_runs_once_a_task(decoder, start, monkeypatch, coupled):
    """Coupled: every task's run has all rows, and would leave its keys in all lines."""
    from dts.nn.rows import COUPLED, RowAxes

    served = start(decoder, run=False)
    prompts = {"a": "xy", "b": "a longer one", "c": "z"}
    jobs = [ask(served, "generate", m, p, max_tokens=6, **GREEDY) for m, p in prompts.items()]
    model = served.engine.model
    served.engine.residents.have(list(prompts))
    why = dict.fromkeys(model._layers, "a test says so")
    found = RowAxes(out_axes=[COUPLED]) if coupled else RowAxes(unroutable=why)
    monkeypatch.setattr(model._known_calls, "where", lambda *_, **__: found)
    served.engine.start()
    assert [texts(job)[0] for job in jobs] == [alone(decoder, served, m, p, 6) for m, p in prompts.items()]
    assert not served.engine.continuous.together


@pytest.mark.parametrize("name", KNOWN)
def test_models_that_it_is_for_say_what_they_say_alone_and_others_are_not_taken(name):
    options, why = KNOWN[name]
    torch.manual_seed(0)
    ids = dict(bos_token_id=None, eos_token_id=None, pad_token_id=0)
    config = getattr(transformers, f"{name}Config")(**options, **ids)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    found = why_not(SimpleNamespace(model=model))
    assert (why in found and found) if why else found == ""
    if why:
        return
    prompts = [[5, 6, 7], list(range(2, 22)), [1]]  # longer and shorter than the window
    rows = [(prompt, 14, Choice("base")) for prompt in prompts]
    running, jobs = drive(dts.DTSModel(model), *rows, prefill=6)
    for job in jobs:
        running.join(job.rows)
        running.step()
    while running.rows:
        running.step()
    for job, prompt in zip(jobs, prompts):
        assert said(job) == whole(model, prompt, 14)


def test_the_bases_generation_config_keeps_its_say(decoder, tmp_path):
    import shutil

    shutil.copytree(decoder.base, tmp_path / "base")
    config = transformers.GenerationConfig(repetition_penalty=1.7, no_repeat_ngram_size=2, suppress_tokens=[40, 41])
    config.save_pretrained(tmp_path / "base")
    served = serve(Options(str(tmp_path / "base"), decoder.adapters, device="cpu"))
    served.engine.start()
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    jobs = [ask(served, "generate", "base", prompt, max_tokens=20, **GREEDY) for prompt in ("first", "the second")]
    for job, prompt in zip(jobs, ("first", "the second")):
        text = served.texts.base
        assert texts(job) == [text.decode(whole(base, text.encode(prompt), 20))]
    assert served.engine.drain(30)


def test_a_row_that_fails_harms_no_other(decoder, start, monkeypatch):
    served = start(decoder, run=False)
    running = served.engine.continuous
    forward = running._forward

    def fails(rows, counts):
        if any(one.ids[0] == 99 and len(one.ids) > 4 for one in rows):
            raise RuntimeError("of the one row")
        forward(rows, counts)

    monkeypatch.setattr(running, "_forward", fails)
    good = [ask(served, "generate", name, "good", max_tokens=12, **GREEDY) for name in "ab"]
    bad = ask(served, "generate", "a", [99, 5], max_tokens=12, **GREEDY)
    served.engine.start()
    with pytest.raises(Refused, match="internal error"):
        bad.collected.events()
    assert [texts(job)[0] for job in good] == [alone(decoder, served, name, "good", 12) for name in "ab"]


def test_those_of_a_lower_priority_go_first(decoder, start):
    served, order = start(decoder, run=False, batching=Batching(rows=1)), []
    asked = {"last": 5, "first": -2, "second": 0, "third": 0}
    for name, priority in asked.items():
        job = ask(served, "generate", "a", "x", submit=False, priority=priority, max_tokens=1, **GREEDY)
        at_token(job, 1, lambda name=name: order.append(name))
        served.engine.submit(job)
    served.engine.start()
    assert served.engine.drain(30) and order == ["first", "second", "third", "last"]


def test_tokens_are_told_with_the_models_own_probabilities(decoder, start):
    served = start(decoder)
    how = dict(max_tokens=6, scores=3)
    jobs = [ask(served, "generate", m, "score", temperature=t, **how) for m, t in (("a", 0), ("b", 2.0))]
    for job in jobs:
        scored = [one for event in job.collected.events() for one in event.scored]
        prompt = served.texts.base.encode("score")
        ids = torch.tensor([[*prompt, *(one.token for one in scored)]])
        with torch.no_grad():
            logits = decoder.single((job.choice.name, 1.0))(ids).logits[0, len(prompt) - 1 :]
        assert len(scored) >= job.rows[0].tokens - 1
        for one, row in zip(scored, logits):
            expected = Scored.of(row, one.token, 3)
            assert one.logprob == pytest.approx(expected.logprob, abs=1e-4)
            assert [token for token, _ in one.top] == [token for token, _ in expected.top]


def test_a_blocked_row_is_overtaken_for_a_while_only(decoder, start, monkeypatch):
    from dts.serve import catalogue, engine

    read = []
    about = catalogue.read_about
    monkeypatch.setattr(catalogue, "read_about", lambda folder: (read.append(folder.name), about(folder))[1])
    monkeypatch.setattr(engine, "PATIENCE", 0.0)
    served = start(decoder, memory=int(1.5 * bytes_at(decoder.adapters / "a")))
    long = ask(served, "generate", "a", "x", submit=False, max_tokens=50, **GREEDY)
    blocked = ask(served, "generate", "b", "y", submit=False, max_tokens=1, **GREEDY)
    behind, ended = [], []

    def more():
        behind.append(ask(served, "generate", "a", "z", submit=False, max_tokens=30, **GREEDY))
        at_token(behind[-1], 30, lambda: ended.append("behind"))
        served.engine.submit(behind[-1])

    at_token(blocked, 1, lambda: ended.append("blocked"))
    at_token(long, 2, lambda: served.engine.submit(blocked))
    at_token(long, 8, more)
    served.engine.submit(long)
    assert texts(long) and texts(blocked) == [alone(decoder, served, "b", "y", 1)] and texts(behind[0])
    assert ended == ["blocked", "behind"] and sorted(read) == ["a", "b", "c"]  # whatever was asked for at each token


def test_a_mixture_that_never_has_room_is_told_so_and_nobody_waits_for_it(decoder, start, monkeypatch):
    """Who asked for it again and again kept others from running beside those that ran."""
    from dts.serve import engine

    monkeypatch.setattr(engine, "PATIENCE", 0.0)
    served = start(decoder, memory=int(1.5 * bytes_at(decoder.adapters / "a")))
    long = ask(served, "generate", "a", "x", submit=False, max_tokens=50, **GREEDY)
    never = ask(served, "generate", "a:0.5,b:0.5", "y", submit=False, max_tokens=1, **GREEDY)
    behind = ask(served, "generate", "a", "z", submit=False, max_tokens=3, **GREEDY)
    ended = []
    at_token(long, 2, lambda: (served.engine.submit(never), served.engine.submit(behind)))
    at_token(long, 8, lambda: ended.append(never.over))
    at_token(behind, 3, lambda: ended.append("behind"))
    at_token(long, 50, lambda: ended.append("long"))
    served.engine.submit(long)
    assert texts(long) and texts(behind) == [alone(decoder, served, "a", "z", 3)]
    with pytest.raises(Refused, match=r"the adapters \['a', 'b'\] .* do not fit beside nothing"):
        texts(never)
    assert ended == ["behind", True, "long"]
