"""The commands of `hf-lottery`."""

from hf_lottery.cli.main import app, main

__all__ = ["app", "main"]
