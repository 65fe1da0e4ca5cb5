import json

from dts_kernels.paths import PATHS


def test_it_names_the_path_of_every_sample(dts):
    report = json.loads(dts("doctor", "--json").stdout)
    assert report["versions"]["torch"] and report["devices"]["cpu"]["cores"] >= 1
    assert {p["path"] for p in report["paths"]} <= set(PATHS["linear"])
    assert {p["dtype"] for p in report["paths"]} == {"float32", "bfloat16", "float16"}


def test_a_missing_extra_comes_with_the_command_that_installs_it(dts, monkeypatch):
    monkeypatch.setattr("dts.cli.doctor.EXTRAS", {"no_such_module": ("plot", "plots")})
    shown = dts("doctor")
    assert shown.exit_code == 0 and "pip install 'dts-merge[plot]' for plots" in shown.stdout
