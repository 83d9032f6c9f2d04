"""What the README says was measured is what the benches wrote."""

from __future__ import annotations

import pytest

from lab.bench import readme


def test_the_readme_says_what_was_measured() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert text == readme.written(text), "README.md is not up to date: python -m lab.bench.readme"


def test_a_figure_that_was_not_measured_is_found() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.written(text.replace("| Flux.1 dev | ", "| Flux.1 dev | 9", 1)) == text


def test_a_row_that_did_not_pass_is_not_bold() -> None:
    lines = readme.tables()["quality-512"].splitlines()
    safe, unsafe = (next(line for line in lines if readme.TITLES[row] in line) for row in ("context_auto", "edit_only"))
    assert safe.count("**") == 2 + 2 * 3 and "**" not in unsafe


def test_markers_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"<!-- steps: begin -->"):
        readme.written("no markers")
