import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dts as package
from dts.cli.app import app, main
from tests.dts.cli.writing import WRITERS, writing


def test_every_verb_has_help_and_json(dts):
    verbs = [command.name for command in app.registered_commands]
    assert {"compress", "list", "inspect", "verify", "diff", "apply", "truncate", "doctor", "demo"} <= set(verbs)
    for verb in verbs:
        shown = dts(verb, "--help")
        assert shown.exit_code == 0 and "--json" in shown.stdout, verb


def test_help_documents_exit_codes_and_version(dts):
    assert "1 a check failed, 2 bad input" in " ".join(dts("--help").stdout.split())
    assert dts("--version").stdout.strip() == f"dts {package.__version__}"


def test_a_typo_gets_a_suggestion(dts):
    wrong = dts("inspekt", "x")
    assert wrong.exit_code == 2 and "inspect" in wrong.stderr
    wrong = dts("doctor", "--jsno")
    assert wrong.exit_code == 2 and "--json" in wrong.stderr


def test_bad_input_is_one_panel_without_a_traceback(dts):
    wrong = dts("diff", "no-such-folder/a", "no-such-folder/b", "--json")
    assert wrong.exit_code == 2
    assert "no-such-folder" in wrong.stderr and "Traceback" not in wrong.stderr
    assert json.loads(wrong.stdout)["exit_code"] == 2 and "no-such-folder" in json.loads(wrong.stdout)["error"]


@pytest.mark.parametrize(
    "words", [("diff", "no/a", "no/b"), ("list", "no"), ("inspect", "no"), ("compress", "a", "b", "-o", "c")]
)
@pytest.mark.parametrize("word", ["--debug", "--traceback"])
def test_traceback_on_request(dts, words, word):
    for given in ((*words, word), (word, *words)):
        wrong = dts(*given)
        assert wrong.exit_code == 2 and "Traceback" in wrong.stderr and "Error" in wrong.stderr


def test_an_error_is_told_where_stdout_takes_nothing(dts, monkeypatch):
    def full(*words, **how):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dts.cli.app.print", full, raising=False)
    wrong = dts("list", "no", "--json")
    assert wrong.exit_code == 2 and isinstance(wrong.exception, SystemExit) and "Error" in wrong.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_where_stderr_takes_nothing_the_exit_code_is_the_same(tmp_path, monkeypatch):
    """It was 1, which says that a check failed."""
    full = open("/dev/full", "w")  # noqa: SIM115  closing it fails
    monkeypatch.setattr("sys.stderr", full)
    with pytest.raises(SystemExit) as ended:
        app(["list", str(tmp_path / "nowhere")], prog_name="dts")
    monkeypatch.undo()
    assert ended.value.code == 2
    with pytest.raises(OSError):
        full.close()


def test_a_full_disk_is_advised_of_once():
    from dts.files import in_words
    from dts.files.errors import explained

    with pytest.raises(OSError) as error, explained(Path("/out"), lambda path: True):
        raise OSError(28, "No space left on device", "/out")
    assert in_words(error.value).lower().count("free some space") == 1
    assert in_words(OSError(28, "No space left on device")).count("free some space") == 1


def test_a_folder_that_was_removed_is_no_place_to_run_in(dts, models, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    wrong = dts("compress", models / "base", models / "one", "-o", tmp_path / "a")
    assert wrong.exit_code == 2 and "is not there any more" in wrong.stderr and not (tmp_path / "a").exists()


def test_an_unexpected_error_says_so(dts, monkeypatch):
    monkeypatch.setattr("dts.cli.doctor.examine", lambda: 1 / 0)
    wrong = dts("doctor")
    assert wrong.exit_code == 3 and "Unexpected ZeroDivisionError" in wrong.stderr and "--debug" in wrong.stderr


@pytest.mark.parametrize("start", [["-m", "dts"], ["-c", "from dts.cli.app import main; main()"]])
def test_it_starts_without_torch(start):
    """`dts --help` answers at once: nothing heavy is imported before a verb runs."""
    code = [sys.executable, "-X", "importtime", *start, "--help"]
    shown = subprocess.run(code, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and "compress" in shown.stdout
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "typer" in imported and not imported & {"torch", "transformers", "triton", "numpy"}


def started(*words, **rest):
    return subprocess.Popen([sys.executable, "-m", "dts", *map(str, words)], stderr=subprocess.PIPE, **rest)


@pytest.mark.parametrize("words", [["--json"], ["--tensors"]])
def test_a_reader_that_has_enough_is_no_error(models, dts, tmp_path, words):
    """`dts inspect ... | head`: quiet, with a shell's code for it, not the one of a check that failed."""
    assert dts("compress", models / "base", models / "one", "-o", "a", "--rank-fraction", "50%").exit_code == 0
    reader, writer = os.pipe()
    os.close(reader)
    root = Path(__file__).resolve().parents[3]
    child = started("inspect", tmp_path / "a", *words, stdout=writer, cwd=root)
    os.close(writer)
    assert child.communicate()[1] == b"" and child.returncode == 141


def test_interrupted_is_one_word_and_a_code(dts, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("dts.cli.doctor.examine", interrupted)
    done = dts("doctor", "--json")
    assert done.exit_code == 130 and done.stderr.strip() == "Interrupted" and not done.stdout


@pytest.mark.parametrize("verb", WRITERS)
def test_every_verb_names_the_place_it_cannot_write(dts, models, tmp_path, verb):
    assert dts("compress", models / "base", models / "one", "-o", "a", "--rank-fraction", "50%").exit_code == 0
    (tmp_path / "file").touch()
    words = writing(models)[verb]
    wrong = dts(verb, *words, "--out", "file/out", "--json")
    assert wrong.exit_code == 2 and "Errno" not in wrong.stderr
    error = json.loads(wrong.stdout)["error"]
    assert error.startswith("file/out cannot be a folder: a part of its path is a file; nothing was written there")
    assert "Choose another folder" in error


def test_a_standard_output_that_is_closed_is_no_crash(monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *handler: None)
    monkeypatch.setattr(sys, "argv", ["dts", "--version"])
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code


@pytest.mark.parametrize("words", [("--nothing", "list", "."), ("nothing",), ("list", "--nothing"), ("export",)])
def test_wrong_usage_of_any_word_is_json_too(dts, words):
    wrong = dts(*words, "--json")
    assert wrong.exit_code == 2 and json.loads(wrong.stdout)["exit_code"] == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_too_little_memory_is_told_with_a_way_on(dts, monkeypatch, error):
    def examine():
        raise error

    monkeypatch.setattr("dts.cli.doctor.examine", examine)
    wrong = dts("doctor", "--json")
    assert wrong.exit_code == 2 and "not enough memory" in wrong.stderr and "Unexpected" not in wrong.stderr
    assert "dts plan" in json.loads(wrong.stdout)["error"]


def test_no_file_gets_the_number_of_a_closed_standard_stream(tmp_path):
    """Libraries write to it, whatever it is."""
    code = (
        "import os\nfrom dts.cli.app import _standard\nfor n in range(3): os.close(n)\n_standard()\n"
        f"os._exit(os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 3
