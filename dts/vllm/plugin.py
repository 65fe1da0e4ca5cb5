"""The entry point that vLLM calls in each of its processes, before it reads its own options."""

from __future__ import annotations

import os


def register() -> None:
    """Makes ``--load-format dts`` known, and, where the environment names a folder of adapters, its names.

    Called more than once it does the same again.  Raises ValueError for an environment that cannot be, and in mode
    "packed" for a vLLM of another version.
    """
    from dts.vllm.options import Options

    options = Options.read(os.environ)
    from dts.vllm import loader

    loader.register()
    if options.mode == "packed":
        from dts.vllm.packed import engine

        engine.install()
    if options.adapters is not None:
        from dts.vllm import resolver

        resolver.register(options)
