import pytest
import torch

from dts.devices import device_named


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpu", "'gpu': there is none of this name; it is cpu, cuda, cuda:1"),
        ("", "'': there is none"),
        (True, "True: there is none"),
        (None, "None: there is none"),
        ("cuda:-1", "there is none"),
        ("meta", "holds no numbers"),
        ("mps", "finds none here"),
        ("xpu", "finds none here"),
        ("cuda", "finds none here"),
        ("cuda:99", "finds none here"),
    ],
)
def test_a_device_that_is_not_there(name, says, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device .*{says}"):
        device_named(name)


def test_a_device_is_that_of_its_name(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_named("auto") == torch.device("cuda") and device_named("cuda:1") == torch.device("cuda:1")
    assert device_named("cpu:0") == device_named(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="numbered from 0 to 1"):
        device_named("cuda:2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_named("auto") == torch.device("cpu")
    assert device_named("cuda:1", here=False) == torch.device("cuda:1")  # of another machine
    for name in ("meta", "gpu"):
        with pytest.raises(ValueError, match=f"device '{name}'"):
            device_named(name, here=False)
