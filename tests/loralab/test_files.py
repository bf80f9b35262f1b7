"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from loralab.errors import LoralabError
from loralab.files import make_folder, write_whole


def test_text_and_bytes_are_written_as_they_are_and_nothing_is_left_beside_them(tmp_path):
    path = write_whole(tmp_path / "deeper" / "a.txt", "ä\n")
    write_whole(path.with_name("b.bin"), b"\x00\xff")
    assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == {
        "a.txt": b"\xc3\xa4\n",
        "b.bin": b"\x00\xff",
    }


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path):
    make_folder(tmp_path / "deeper" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(LoralabError, match=r"out cannot be a folder \(.+\): give another --out$"):
        make_folder(tmp_path / "file" / "out")


def test_a_write_that_is_cut_off_leaves_what_was_there(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "a.txt", "old")

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "new")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_folder_in_its_place_is_refused_and_nothing_is_left_beside_it(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_whole(tmp_path / "a", "text")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
