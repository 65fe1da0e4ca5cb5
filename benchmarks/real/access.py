"""Is everything there that is about to be downloaded?  Asked at once and first, as it takes hours later."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from benchmarks.real.sandbox import NotIsolated, passes
from dts.demo.tasks import MissingData

PACKAGES = {  # benchmark -> module, how to install it
    "ifeval": ("lm_eval", "pip install 'lm_eval[ifeval]'"),
    "alpacaeval": ("alpaca_eval", "pip install alpaca-eval"),
}
WRITES_CODE = ("humaneval", "mbpp")


def place_of(name: str, mirror: Path | None) -> str:
    """A model or data set: its folder in the mirror, which is owner/name, else its hub id; a folder as it is."""
    if mirror is not None and (mirror / name).is_dir():
        return str(mirror / name)
    return name


def problems(
    models: Iterable[str], data: Iterable[str], benchmarks: Iterable[str], isolated: bool, device: str = "cpu"
) -> list[str]:
    """A line for all that is absent, closed or not installed, with what to do about it.

    models, data: folders or hub ids.
    """
    benchmarks, found = list(benchmarks), []
    if device != "cpu" and importlib.util.find_spec("accelerate") is None:
        found.append("models are loaded onto the device by accelerate, which is not installed: pip install accelerate")
    for benchmark in dict.fromkeys(benchmarks):
        module, install = PACKAGES.get(benchmark, ("", ""))
        if module and importlib.util.find_spec(module) is None:
            found.append(f"{benchmark} is graded by {module}, which is not installed: {install}")
    if any(benchmark in WRITES_CODE for benchmark in benchmarks) and not isolated:
        try:
            passes("", "")
        except NotIsolated as error:
            found.append(str(error))
    remote = [name for name in data if not Path(name).is_dir()]
    if remote and importlib.util.find_spec("datasets") is None:
        found.append("the data sets are read with datasets, which is not installed: pip install datasets")
    found += [line for name in models if not Path(name).is_dir() and (line := _closed(name, "model"))]
    return found + [line for name in remote if (line := _closed(name, "dataset"))]


def _closed(name: str, kind: str) -> str | None:
    """Why a hub's repository cannot be read, and what to do; None where it can be."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    page = f"https://huggingface.co/{'datasets/' * (kind == 'dataset')}{name}"
    try:
        HfApi().auth_check(name, repo_type=kind)
    except GatedRepoError:
        return (
            f"{name} is gated: accept its licence at {page} with your account, then run hf auth login (or set HF_TOKEN)"
        )
    except RepositoryNotFoundError:
        return (
            f"{name} is not there, or not for you: look at {page}; a copy in a folder of that name is taken by --mirror"
        )
    except (HfHubHTTPError, OSError) as error:
        return f"{name} cannot be asked for ({type(error).__name__}): is there a network?  Else give copies by --mirror"
    return None


def refuse(lines: list[str]) -> None:
    """Raises MissingData that says all of it."""
    if lines:
        raise MissingData("before anything is downloaded:\n  " + "\n  ".join(lines))
