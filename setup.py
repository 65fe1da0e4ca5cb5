"""Everything static is in pyproject.toml; this file holds what needs a decision at build time."""

from setuptools import setup

setup()
