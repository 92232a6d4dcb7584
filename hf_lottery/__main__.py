"""`python -m hf_lottery`, so that launchers can start it: accelerate launch -m hf_lottery run RECIPE."""

from __future__ import annotations

from hf_lottery.cli import main

if __name__ == "__main__":
    main()
