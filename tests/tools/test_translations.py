"""Translations know when they are stale, and change nothing but the text."""

from __future__ import annotations

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import translations
from tools.translations import LANGUAGES, draft, fingerprint, originals, read_cells, stale_cells, translated

TITLE = "# One\n\n[![Open in Colab](https://x/colab-badge.svg)](https://x/blob/main/chapters/01_x.ipynb)"
COMMITTED = [
    (path, language)
    for language in LANGUAGES
    for path in originals()
    if translations.translation_of(path, language).exists()
]


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    path = tmp_path / "chapters" / "01_x.ipynb"
    path.parent.mkdir()
    text = new_markdown_cell("See [claims](../docs/claims.md) and [two](01_x.ipynb#end).", id="text")
    cells = [new_markdown_cell(TITLE, id="title"), text, new_code_cell("print(1)", id="code")]
    nbformat.write(new_notebook(cells=cells), path)
    monkeypatch.setattr(translations, "ROOT", tmp_path)
    monkeypatch.setattr(translations, "originals", lambda: [path])
    return path


def test_a_draft_is_untranslated_until_its_hash_is_that_of_the_original(chapter):
    draft("ko", ["01_x"])
    target = translations.translation_of(chapter, "ko")
    assert stale_cells(chapter, "ko") == ["title", "text"]
    cells = read_cells(target)
    target.write_text(target.read_text().replace("untranslated", fingerprint(TITLE), 1))
    assert stale_cells(chapter, "ko") == ["text"]
    draft("ko", ["01_x"])  # keeps what is in step
    assert read_cells(target)["title"] == (fingerprint(TITLE), cells["title"][1])


def test_links_lead_to_the_same_places_and_colab_opens_the_translation(chapter):
    draft("ko", ["01_x"])
    title, text, code = translated(chapter, "ko").cells
    assert "/blob/main/ko/chapters/01_x.ipynb" in title.source
    assert text.source == "See [claims](../../docs/claims.md) and [two](01_x.ipynb#end)."
    assert code == nbformat.read(chapter, as_version=4).cells[2]


def test_another_repository_of_the_badge_makes_no_translation_stale():
    assert fingerprint(TITLE) == fingerprint(TITLE.replace("https://x/blob", "https://y/blob"))
    assert fingerprint(TITLE) != fingerprint(TITLE.replace("One", "Two"))


@pytest.mark.parametrize(("path", "language"), COMMITTED, ids=lambda value: getattr(value, "stem", value))
def test_a_committed_translation_is_in_step_and_its_notebook_is_built_from_it(path, language):
    assert stale_cells(path, language) == [], "translate these cells anew: tools/translations.py draft"
    stored = nbformat.read(translations.translation_of(path, language).with_suffix(".ipynb"), as_version=4)
    assert stored == translated(path, language), "run make generate"
