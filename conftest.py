"""Has every code block of README and docs run as a test; tests/pages.py says how."""

from __future__ import annotations

from pages import PAGES

pytest_collect_file = PAGES.pytest()
