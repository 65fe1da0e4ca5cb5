"""The texts that digests are of."""

import json

import torch

from dts.adapter import digests
from dts.checkpoint.safetensors_file import NAMES


def test_what_a_digest_says_of_a_tensor_is_its_canonical_text():
    for key, shape in (("a.weight.u", (3, 4)), ('\u00e9"\\\n\t/\u2028\U0001f600.sigma', (5,)), ("s", ())):
        for dtype in (torch.float32, torch.uint8, torch.bfloat16):
            assert digests._about(key, dtype, shape) == digests.canonical([key, NAMES[dtype], list(shape)])
    value = {"b": [1, 2.5, None, True, "\u00e9"], "a": {"d": 1e-9, "c": []}}
    assert digests.canonical(value) == json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    assert digests.canonical(value, 3) == json.dumps(value, sort_keys=True).encode()


def test_a_configuration_is_put_together_of_the_texts_of_its_rows():
    own = {"kind": "factors", "shape": [3, 4], "bytes": 7, "norm": 0.1, "sha256": "01234567", "squared_error": None}
    quoting = own | {"tied_to": 'a,"shape":"\u00e9', "dtype": "bfloat16"}
    inner = own | {"experts": [{"rank": 1, "shape": [2]}]}  # no row has one, and none would be cut there
    rows = {"b.weight": own, 'a"\u00e9.weight': quoting, "c": inner, "d": {"kind": "tied", "shape": [1], "sha256": "0"}}
    texts = dict[str, str]()
    for name, row in rows.items():
        assert digests.digest_of(name, {}, row, texts=texts) == digests.row_digest(name, {}, row)
    assert texts == {name: digests.canonical(row).decode() for name, row in rows.items()}
    config = {"tensors": rows, "task": {"name": "\u00e9"}, "amr": 0.5, "sha256": "0" * 16, "files": {}}
    expected = digests.config_digest(config)
    assert digests.config_digest(config, texts) == digests.config_digest(config | {"sha256": ""}, texts) == expected
    assert digests.config_digest(config, {"c": texts["c"]}) == expected  # of not all of them none is taken
    assert digests.config_digest(config, texts | {"c": texts["d"]}) != expected
