"""`python -m understudy.cli` is `understudy`."""

from __future__ import annotations

from understudy.cli import main

main()
