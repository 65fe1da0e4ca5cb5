"""The texts that digests are of."""

import json

import torch

from dts.adapter import digests
from dts.checkpoint.safetensors_file import NAMES


def test_what_a_digest_says_of_a_tensor_is_its_canonical_text():
    for key, shape in (("a.weight.u", (3, 4)), ('\u00e9"\\\n\t/\u2028\U0001f600.sigma', (5,)), ("s", ())):
        for dtype in (torch.float32, torch.uint8, torch.bfloat16):
            tensor = torch.zeros(shape, dtype=dtype)
            assert digests._about(key, tensor) == digests.canonical([key, NAMES[dtype], list(shape)])
    value = {"b": [1, 2.5, None, True, "\u00e9"], "a": {"d": 1e-9, "c": []}}
    assert digests.canonical(value) == json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    assert digests.canonical(value, 3) == json.dumps(value, sort_keys=True).encode()
