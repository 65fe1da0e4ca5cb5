"""What keeps a server from starting, where even its libraries are missing."""

from pathlib import Path

import pytest

from dts.serve import options, start
from dts.serve.options import Options, problems


def test_a_missing_library_is_named_with_what_else_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setattr(options, "NEEDED", {"no_such_module": "no-such-package"})
    wrong = problems(Options("/nowhere", Path("/nowhere"), port=1 << 20))
    assert "no-such-package: pip install 'dts-merge[serve]'" in wrong[0]
    assert len(wrong) == 4 and any("--port" in one for one in wrong)


def test_keys_are_lines_without_remarks(tmp_path):
    (tmp_path / "keys").write_text("# who\n\n  one key  \nanother\n")
    assert options.keys_of(tmp_path / "keys") == ["one key", "another"] and options.keys_of(None) == []


def test_several_processes_are_refused_with_what_to_do(monkeypatch, tmp_path):
    """As torchrun starts them: each would open the port, and none would follow another's calls."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    wrong = problems(Options("/nowhere", Path("/nowhere")), listens=False)
    assert wrong[0].startswith("this is one of 2 processes (RANK=1, WORLD_SIZE=2") and len(wrong) == 3
    assert "DTS_VLLM_MODE=packed, --tensor-parallel-size 2" in wrong[0] and "dts.ray.app:app" in wrong[0]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert len(problems(Options("/nowhere", Path("/nowhere")), listens=False)) == 2


def test_a_base_without_a_tokenizer_serves_token_ids(monkeypatch, caplog):
    """Of such a one transformers 5.0 says that another package is missing, after an empty line; the server ended."""
    transformers = pytest.importorskip("transformers")

    def missing(*args, **kwargs):
        raise ImportError("\n it needs protobuf\n")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", missing)
    assert start._tokenizer("/nowhere", False) is None
    assert "must send token ids: it needs protobuf" in caplog.text
