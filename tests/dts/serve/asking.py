"""Requests to an engine, and what the single-task models say to the same."""

import time
import uuid

import torch

from dts.serve.choice import choice_of
from dts.serve.job import Collected, Job, Piece
from dts.serve.sampling import Sampling


def ask(served, kind, model, *prompts, seconds=60.0, submit=True, priority=0, **sampling):
    told = Collected()
    job = Job(uuid.uuid4().hex, kind, choice_of(model, "base"), told, time.monotonic() + seconds, priority=priority)
    text = served.texts.of(job.choice)
    for prompt in prompts:
        how = Sampling(**sampling) if sampling else None
        job.add(text.encode(prompt) if isinstance(prompt, str) else prompt, how, text.decode)
    if submit:
        served.engine.submit(job)
    job.collected = told
    return job


def texts(job):
    found = {}
    for piece in job.collected.events():
        assert isinstance(piece, Piece)
        found[piece.index] = found.get(piece.index, "") + piece.text
    return [found[index] for index in sorted(found)]


def whole(model, prompt, tokens):
    """The ids that ``generate`` of transformers answers the ids of a prompt with, greedily."""
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return out[0, len(prompt) :].tolist()


def alone(place, served, model, prompt, tokens):
    """What transformers makes of a prompt, a text or ids, with the dense model of one task."""
    text = served.texts.base
    ids = text.encode(prompt) if isinstance(prompt, str) else prompt
    return text.decode(whole(place.single(*choice_of(model, "base").weights), ids, tokens))
