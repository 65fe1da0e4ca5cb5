"""What the plugin is told, a fine-tune's config beside vLLM's, and what the plugin costs before it is called."""

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from dts.sites.configs import OtherConfig
from dts.vllm.configs import differences, refuse_differences, warn_otherwise
from dts.vllm.options import CACHE, Options

ROOT = Path(__file__).resolve().parents[3]


def test_nothing_said_is_nothing_resolved():
    assert Options.read({"HOME": "/"}) == Options()


def test_a_folder_is_enough(tmp_path):
    options = Options.read({"DTS_VLLM_ADAPTERS": str(tmp_path)})
    assert options == Options(tmp_path, "lora", 512, "refuse", tmp_path / CACHE)
    own = {"DTS_VLLM_ADAPTERS": str(tmp_path), "DTS_VLLM_RANK": "64", "DTS_VLLM_CACHE": "/elsewhere"}
    assert Options.read(own | {"DTS_VLLM_SAMPLES": "reencode"}) == Options(
        tmp_path, "lora", 64, "reencode", Path("/elsewhere")
    )
    assert Options.read({"DTS_VLLM_MODE": "packed"}) == Options(mode="packed")


@pytest.mark.parametrize(
    "given, words",
    [
        ({"DTS_VLLM_ADAPTERS": "/no/such/folder"}, ["/no/such/folder is no folder"]),
        ({"DTS_VLLM_ADAPTERS": ".", "DTS_VLLM_RANK": "513"}, ["1 to 512", "'513'"]),
        ({"DTS_VLLM_ADAPTERS": ".", "DTS_VLLM_RANK": "many"}, ["1 to 512", "'many'"]),
        ({"DTS_VLLM_ADAPTERS": ".", "DTS_VLLM_RANK": "0"}, ["1 to 512"]),
        ({"DTS_VLLM_RANK": "8"}, ["DTS_VLLM_RANK is of no use without DTS_VLLM_ADAPTERS"]),
        (
            {"DTS_VLLM_ADAPTERS": ".", "DTS_VLLM_SAMPLES": "keep", "DTS_VLLM_MODE": "fast"},
            ["refuse or reencode, not 'keep'", "lora or packed, not 'fast'"],
        ),
        (
            {"DTS_VLLM_ADAPTERS": ".", "DTS_VLLM_MODE": "packed", "DTS_VLLM_RANK": "8", "DTS_VLLM_CACHE": "/c"},
            ["DTS_VLLM_RANK says how LoRAs are made, and", "DTS_VLLM_CACHE says how"],
        ),
    ],
)
def test_all_that_is_wrong_is_said_at_once(given, words):
    with pytest.raises(ValueError) as error:
        Options.read(given)
    assert all(word in str(error.value) for word in words)


def test_the_plugin_brings_neither_vllm_nor_torch_before_it_is_called():
    code = "import sys, dts, dts.vllm.plugin; print({'vllm', 'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


BASE = {"vocab_size": 60, "rope_theta": 1e4, "dtype": "float32"}


def test_a_config_that_computes_something_else_is_refused_with_the_option():
    used = SimpleNamespace(**BASE)
    assert differences(None, BASE, used) == differences(BASE | {"dtype": "bfloat16"}, BASE, used) == {}
    other = BASE | {"rope_theta": 1e6}
    with pytest.raises(ValueError, match="""--hf-overrides '{"rope_theta": 1000000.0}'"""):
        refuse_differences("a", other, BASE, used)
    refuse_differences("a", other, BASE, SimpleNamespace(**other))  # vLLM was told


def test_what_computes_otherwise_is_warned_of_and_logged(caplog):
    """A constant that the fine-tune leaves out is transformers' own, and no less another one."""
    pytest.importorskip("transformers")
    llama = {"model_type": "llama", "vocab_size": 60, "rms_norm_eps": 1e-5, "hidden_act": "silu"}
    less = {key: value for key, value in llama.items() if key != "rms_norm_eps"}
    with pytest.warns(OtherConfig, match="'a' .* rms_norm_eps is 1e-06, the base's 1e-05"):
        refuse_differences("a", less, llama, SimpleNamespace(**llama))
    with pytest.warns(OtherConfig, match="hidden_act is 'gelu', the base's 'silu'.  vLLM runs it as the base"):
        warn_otherwise("b", llama | {"hidden_act": "gelu"}, llama)
    assert len(caplog.records) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuse_differences("a", less, llama, SimpleNamespace(**llama | {"rms_norm_eps": 1e-6}))  # vLLM was told
        warn_otherwise("a", llama | {"torch_dtype": "float16"}, llama)
        warn_otherwise("a", None, llama)
