"""What keeps a server from starting, where even its libraries are missing."""

from pathlib import Path

from dts.serve import options
from dts.serve.options import Options, problems


def test_a_missing_library_is_named_with_what_else_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setattr(options, "NEEDED", {"no_such_module": "no-such-package"})
    wrong = problems(Options("/nowhere", Path("/nowhere"), port=1 << 20))
    assert "no-such-package: pip install 'dts-merge[serve]'" in wrong[0]
    assert len(wrong) == 4 and any("--port" in one for one in wrong)


def test_keys_are_lines_without_remarks(tmp_path):
    (tmp_path / "keys").write_text("# who\n\n  one key  \nanother\n")
    assert options.keys_of(tmp_path / "keys") == ["one key", "another"] and options.keys_of(None) == []
