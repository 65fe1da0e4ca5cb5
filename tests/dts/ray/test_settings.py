"""What an application is started with: everything that is wrong is said at once, and nothing is loaded."""

import inspect

import pytest

pytest.importorskip("pydantic")

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from dts.cli.serve import serve  # noqa: E402
from dts.ray.settings import Settings, checked  # noqa: E402


@pytest.fixture
def place(tmp_path):
    """A model and a folder of adapters, of which only the names are looked at."""
    (tmp_path / "base").mkdir()
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "base" / "model.safetensors")
    for name in ("a", "b"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / "dts_config.json").touch()
    return tmp_path


def test_words_of_a_command_line_are_the_options_of_dts_serve(place, monkeypatch):
    monkeypatch.chdir(place)
    given = {"model": "base", "adapters": "adapters", "replicas": "2", "memory": "1MB", "pin": "a,b", "wait": "20"}
    settings = checked(given)
    options = settings.options()
    assert settings.replicas == 2 and options.memory == 10**6 and options.pinned == ("a", "b")
    assert options.model == str(place / "base") and options.adapters == place / "adapters"  # from the root on
    assert options.batching.wait == 0.02 and options.base_name == "base"


def test_no_option_of_dts_serve_is_left_out(place, monkeypatch):
    monkeypatch.chdir(place)
    theirs = set(inspect.signature(serve).parameters) - {"host", "port", "as_json"}  # Ray's, and a command's
    assert theirs <= set(Settings.model_fields)
    more = {"quantised_from": "base", "trust_remote_code": "true", "api_keys": "base", "admin_keys": "nowhere"}
    settings = Settings.model_validate({"model": "org/name", "adapters": "adapters"} | more)
    options = settings.options()
    assert options.model == "org/name" and options.quantised_from == str(place / "base") and options.trusted
    assert options.api_keys == place / "base" and str(options.admin_keys) == "nowhere"
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings  # as replicas are given it


def test_a_port_that_is_taken_is_rays_affair(place, monkeypatch):
    from dts.serve import options

    monkeypatch.setattr(options, "_cannot_bind", lambda host, port: "taken")
    checked({"model": str(place / "base"), "adapters": str(place / "adapters")})


@pytest.mark.parametrize(
    "given, said",
    [
        ({}, ["model: Field required", "adapters: Field required"]),
        ({"model": "m", "adapters": "a", "replicsa": 2, "replicas": 0}, ["replicsa: Extra", "replicas: Input should"]),
        ({"model": "nowhere", "adapters": "nowhere", "queue": 1}, ["the model:", "no folder", "--queue is 1"]),
        ({"max_replicas": 1, "replicas": 2}, ["max_replicas is 1, and replicas 2"]),
        ({"target": 3}, ["target is of max_replicas"]),
        ({"pin": "nobody", "max_body": "5%"}, ["max_body"]),
        ({"pin": "nobody", "device": "nope"}, ["no adapter 'nobody'", "device 'nope'"]),
        ({"memory": "much", "gpus": -1}, ["memory", "gpus"]),
    ],
)
def test_all_that_is_wrong_is_said_at_once(place, given, said):
    whole = (
        {"model": str(place / "base"), "adapters": str(place / "adapters")} if given and "model" not in given else {}
    )
    with pytest.raises(ValueError, match="the application cannot start") as error:
        checked(whole | given)
    for words in said:
        assert words in str(error.value), str(error.value)
