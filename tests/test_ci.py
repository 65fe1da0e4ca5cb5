"""`.ci/run` with a `make` that only says what it was asked: no failure is lost where suites run beside each other."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUITES = set("test test-vllm test-ray sanitize faults models exports quantised distributed machine-code fuzz".split())
MAKE = """#!/bin/sh
echo "asked: $*"
[ ! -r /proc/self/status ] || grep SigIgn /proc/self/status
case " $* " in *" $BROKEN "*) echo "1 failed, 3 passed in 3.21s"; exit 2;; esac
case " $* " in *" $EMPTY "*) echo "3 deselected in 3.21s"; exit 0;; esac
echo "== 3 passed, 1 skipped in 3.21s (0:00:03) =="
"""


@pytest.fixture
def ci(tmp_path):
    """``ci(broken=target, empty=target)`` -> (exit status, output)."""
    bash = shutil.which("bash")
    new = bash and subprocess.run([bash, "-c", "((BASH_VERSINFO[0] * 10 + BASH_VERSINFO[1] >= 51))"]).returncode == 0
    if not new:
        pytest.skip("needs bash 5.1 or newer, which can tell which process has ended")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("make", MAKE), ("apt-get", "#!/bin/sh\nexit 1\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")

    def run(broken="none", empty="none"):
        own = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "BROKEN": broken, "EMPTY": empty}
        words, both = [bash, str(tmp_path / ".ci" / "run")], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(
            words,
            **both,
            text=True,
            timeout=60,
            env=os.environ | own | {"TMPDIR": str(tmp_path)},
            # these tests may run in a shell's background, and no shell gives back a signal that it was told to ignore
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert not list(tmp_path.glob("tmp*")), "environments were left"
        return done.returncode, done.stdout

    return run


def asked(output: str) -> list[str]:
    return re.findall(r"^asked: \S+ \S+ (\S+)", output, re.M)


def test_every_suite_is_asked_for_once(ci):
    code, output = ci()
    assert code == 0 and "failed" not in output, output
    assert SUITES | {"lint"} <= set(asked(output)) and len(asked(output)) == len(set(asked(output))) + 1  # `installed`


def test_no_suite_ignores_the_signal_that_its_tests_send(ci):
    """As what a shell has in its background does."""
    ignored = [int(mask, 16) for mask in re.findall(r"SigIgn:\s*(\w+)", ci()[1])]
    if not ignored:
        pytest.skip("signals that a process ignores are known on Linux alone")
    assert len(ignored) > len(SUITES) and not any(mask >> signal.SIGINT - 1 & 1 for mask in ignored)


@pytest.mark.parametrize("target", ["types", "test", "test-vllm", "fuzz"])
def test_what_fails_is_shown_named_and_stops_no_other(ci, target):
    code, output = ci(broken=target)
    assert code == 1 and "1 failed, 3 passed" in output, output
    assert output.endswith(f"failed: {'checks' if target == 'types' else target}\n"), output
    assert SUITES <= set(asked(output))


@pytest.mark.parametrize("target", ["test", "faults"])
def test_a_suite_of_no_test_fails(ci, target):
    code, output = ci(empty=target)
    assert code == 1 and f"no test of make {target} ran" in output and output.endswith(f"failed: {target}\n"), output


def test_without_an_environment_no_suite_begins(ci):
    code, output = ci(broken="installed")
    assert code != 0 and asked(output) == ["installed"], output
