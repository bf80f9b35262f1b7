"""What formgrader shows of a notebook: all that the student wrote, and nothing that runs."""

import base64
from html.parser import HTMLParser

import nbformat
import pytest
from nbconvert.exporters import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output
from nbgrader.server_extensions.formgrader import handlers

from grader.errors import UnusableName
from grader.exercises import EXERCISES
from grader.records.autograded import origin_of, remove_autograded, write_autograded
from grader.submission.sanitize import MAX_TEXT, harmless

EXERCISE = EXERCISES["ex5_low_rank_limits"]


def png(width, height):
    """The beginning of a picture of this size, and nothing of what is in it."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + size + b" and so on").decode()


PNG = png(800, 600)
EVIL = """<script>alert(1)</script><img src=x onerror=alert(1)>
[link](javascript:alert(1)) ![picture](https://example.org/spy.png) <https://example.org>
```
$$\\href{javascript:alert(1)}{x}$$ </pre></textarea><iframe srcdoc=x>
\x1b[31mred\x1b[0m \x00 \u2028<svg onload=alert(1)> \udc80"""


@pytest.fixture
def notebook() -> NotebookNode:
    """The notebook as a student handed it in: solved, whatever that means."""
    return EXERCISE.released()


def cell(notebook, grade_id):
    (found,) = (c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id)
    return found


def write(notebook, folder, student="ann", origin="a submission"):
    """Write the notebook, which serves as what was rebuilt and as what was executed."""
    return write_autograded(student, EXERCISE, harmless(EXERCISE, notebook, origin, notebook.cells), folder)


def written(notebook, folder):
    return nbformat.read(write(notebook, folder), as_version=4)


class Dangers(HTMLParser):
    """Collects every tag, and every attribute that could do something, in a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [
            (k, v) for k, v in attrs if k.startswith("on") or k in {"href", "src", "srcdoc", "data-link"}
        ]


def formgrader_page(path):
    exporter = HTMLExporter(template_name="formgrade", extra_template_basedirs=[handlers.template_path])
    names = ("assignment_id", "notebook_id", "submission_id", "base_url", "student", "notebook_path")
    return exporter.from_filename(str(path), resources=dict.fromkeys(names, "x") | {"index": 0, "total": 1})[0]


def test_it_lies_where_formgrader_looks_and_nbformat_reads_it(notebook, tmp_path):
    path = write(notebook, tmp_path)
    assert path == tmp_path / "autograded" / "ann" / EXERCISE.id / f"{EXERCISE.id}.ipynb"
    nbformat.validate(nbformat.read(path, as_version=4))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_a_student_wrote_and_what_it_printed_are_shown(notebook, tmp_path):
    cell(notebook, "task1").source = "r = 16"
    cell(notebook, "essay").source = "Because the *rank*:\n\n- is low"
    cell(notebook, "check1").outputs = [
        new_output("stream", name="stdout", text="loss\x1b[1m 3.0\r loss 2.0\n"),
        new_output("execute_result", {"text/plain": "16", "text/html": "<b>16</b>"}),
        new_output("display_data", {"image/png": PNG, "text/plain": "<Figure>"}),
        new_output("error", ename="E", evalue="e", traceback=["line 1", "E: e"]),
    ]
    shown = written(notebook, tmp_path)
    assert cell(shown, "task1").source == "r = 16"
    assert cell(shown, "essay").source == "    Because the *rank*:\n\n    - is low"
    outputs = cell(shown, "check1").outputs
    assert [o.get("text") or o.data for o in outputs] == [" loss 2.0\n", "16", {"image/png": PNG}, "line 1\nE: e"]


def test_an_unanswered_task_is_shown_as_it_was_released(notebook, tmp_path):
    shown = written(notebook, tmp_path)
    assert (shown.cells, shown.metadata.kernelspec) == (notebook.cells, notebook.metadata.kernelspec)


def test_only_outputs_are_taken_from_a_notebook_that_was_tampered_with(notebook):
    rebuilt = EXERCISE.released()
    cell(rebuilt, "task1").source = "r = 16"
    expected = harmless(EXERCISE, rebuilt, "a submission")
    for one in notebook.cells:
        one.source, one.metadata = "<script>", {"tags": ["remove-cell"]}
    notebook.cells.append(new_code_cell("second", metadata={"nbgrader": {"grade_id": "task1", "solution": True}}))
    notebook.cells.reverse()
    assert harmless(EXERCISE, rebuilt, "a submission", notebook.cells) == expected


ODD = (None, 5, 1.5, True, "x", [], [5], [None, "x"], {}, {"x": 5}, [{}], [[[]]], "\udc80", ["\udc80"])


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_whatever_stands_for_anything_in_what_was_executed_the_rest_is_shown(notebook, odd):
    sound = {"output_type": "stream", "name": "stdout", "text": ["done", " well"]}
    spoilt = [sound | {"text": odd}, {"output_type": "error", "traceback": odd}, {"output_type": odd, "name": odd}]
    spoilt += [{"data": odd}, *({"data": {kind: odd}} for kind in ("text/plain", "image/png")), odd]
    executed = [{"id": odd, "outputs": [sound]}, {}, {"id": "task2", "source": odd, "metadata": odd, "outputs": odd}]
    executed.append({"id": "task1", "outputs": [*spoilt, sound]})
    shown = nbformat.reads(harmless(EXERCISE, notebook, "a submission", executed).decode(), as_version=4)
    nbformat.validate(shown)
    assert cell(shown, "task1").outputs[-1].text == "done well"


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (png(50_000, 50_000), "(a picture of 50,000 by 50,000 pixels is left out: 40,000,000 pixels are shown)\n"),
        (png(30_000, 10), "(a picture of 30,000 by 10 pixels is left out: 40,000,000 pixels are shown)\n"),
        (base64.b64encode(base64.b64decode(PNG) + bytes(2_000_000)).decode(), "(a picture of 2,000,0"),
    ],
)
def test_a_picture_that_would_fill_a_browsers_memory_is_a_line(notebook, tmp_path, picture, why):
    cell(notebook, "check1").outputs = [new_output("display_data", {"image/png": picture, "text/plain": "<Figure>"})]
    (output,) = cell(written(notebook, tmp_path), "check1").outputs
    assert output.text.startswith(why)


def test_what_was_made_from_it_is_known_and_taken_away_with_its_empty_folders(notebook, tmp_path):
    assert origin_of("ann", EXERCISE, tmp_path) == ""
    path = write(notebook, tmp_path, origin="the first submission")
    assert origin_of("ann", EXERCISE, tmp_path) == "the first submission"
    remove_autograded("ann", EXERCISE, tmp_path)
    assert list((tmp_path / "autograded").iterdir()) == []
    remove_autograded("ann", EXERCISE, tmp_path)  # there is nothing to take away
    path.parent.mkdir(parents=True)
    for others in ("[]", "{", '{"metadata": 5}', '{"metadata": {"loralab": {"origin": 5}}}', nbformat.writes(notebook)):
        path.write_text(others)
        remove_autograded("ann", EXERCISE, tmp_path)
        assert path.read_text() == others  # it is nbgrader's own, say


def test_nothing_of_a_hostile_notebook_runs_in_formgrader(notebook, tmp_path):
    plain = Dangers(formgrader_page(write(notebook, tmp_path)))
    for name in ("task1", "essay"):
        cell(notebook, name).source = EVIL
    cell(notebook, "task2").outputs = [
        *(new_output("stream", name=name, text=EVIL) for name in ("stdout", "stderr")),
        new_output("error", ename=EVIL, evalue=EVIL, traceback=[EVIL]),
        *(new_output("display_data", {kind: EVIL}) for kind in
          ("text/html", "text/markdown", "text/latex", "image/svg+xml", "application/javascript", "text/plain",
           "application/vnd.jupyter.widget-view+json")),
        new_output("display_data", {"image/png": f'{PNG}" onerror="alert(1)'}),
        new_output("display_data", {"image/png": base64.b64encode(b"GIF89a").decode()}),
        new_output("display_data", {"image/png": PNG}, metadata={"image/png": {"width": '1" onerror="alert(1)'}}),
    ]  # fmt: skip
    path = write(notebook, tmp_path)
    found = Dangers(formgrader_page(path))
    harmless = [("src", f"data:image/png;base64,{PNG}")]
    assert [one for one in found.attributes if one not in plain.attributes] == harmless
    assert {"script", "iframe", "svg"}.isdisjoint(set(found.tags) - set(plain.tags))
    assert found.tags.count("script") == plain.tags.count("script")
    assert {kind for c in nbformat.read(path, 4).cells for o in c.get("outputs", []) for kind in o.get("data", {})} == {
        "image/png"
    }


def test_an_endless_output_is_cut(notebook, tmp_path):
    cell(notebook, "task1").outputs = [new_output("stream", text="x" * 10**5) for _ in range(200)]
    path = write(notebook, tmp_path)
    assert path.stat().st_size < 60 * MAX_TEXT
    outputs = cell(nbformat.read(path, as_version=4), "task1").outputs
    assert outputs[0].text.endswith(" ... (80,000 more characters)")
    assert outputs[-1].text == "... (150 more outputs)\n"


@pytest.mark.parametrize("name", ["..", "../ann", "a/b", "/tmp/ann", ".ann", "", "a\0b", "*", "n" * 129])
def test_a_name_cannot_lead_elsewhere(notebook, tmp_path, name):
    with pytest.raises(UnusableName):
        write(notebook, tmp_path / "course", name)
    assert list(tmp_path.iterdir()) == []
