"""Who may have written a file: its owner, its mode, and every folder and link on the way to it."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from protembed.backends import trust
from protembed.backends.trust import find_distrust

STRANGER = 54321
ROOT_ONLY = pytest.mark.skipif("os.geteuid() != 0", reason="only root gives files away")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir(mode=0o755)
    path = tmp_path / "folder" / "file"
    path.write_text("mine")
    return path


def test_what_is_our_own_is_trusted(file: Path) -> None:
    assert find_distrust(file) == ""
    assert find_distrust(Path("/etc/passwd")) == ""
    with pytest.raises(FileNotFoundError):
        find_distrust(file.with_name("gone"))


@pytest.mark.parametrize("place", ["file", "folder", "above"])
@pytest.mark.parametrize(("mode", "safe"), [(0o757, False), (0o755, True), (0o700, True)])
def test_what_others_may_write_is_not_trusted(file: Path, place: str, mode: int, safe: bool) -> None:
    where = {"file": file, "folder": file.parent, "above": file.parent.parent}[place]
    where.chmod(mode)
    assert (find_distrust(file) == "") == safe
    if not safe:
        assert find_distrust(file) == f"others may write to {where} (mode {mode:o})"


@ROOT_ONLY
def test_a_group_may_write_if_it_is_root_s_or_the_user_s_own(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.chmod(0o664)
    assert find_distrust(file) == "", "root's group"
    os.chown(file, 0, STRANGER)
    groups = {"alone": ("root", []), "listed": ("root", ["root"]), "lab": ("lab", []), "more": ("root", ["eve"])}
    for name, (group, members) in groups.items():
        entry = SimpleNamespace(gr_name=group, gr_mem=members)
        monkeypatch.setattr(trust.grp, "getgrgid", lambda _, entry=entry: entry)
        assert (find_distrust(file) == "") == (name in ("alone", "listed")), name


@ROOT_ONLY
def test_what_belongs_to_another_user_is_not_trusted(file: Path) -> None:
    for where in (file, file.parent):
        os.chown(where, STRANGER, STRANGER)
        assert find_distrust(file) == f"{where} belongs to another user ({STRANGER})"
        assert find_distrust(file, owners={STRANGER}) == ""
        os.chown(where, 0, 0)


@ROOT_ONLY
def test_in_a_sticky_folder_only_our_own_files_are_trusted(file: Path) -> None:
    file.parent.chmod(0o1777)
    assert find_distrust(file) == "", "others may write there, but not replace it"
    inner = file.parent / "inner"
    inner.mkdir(mode=0o755)
    deep = inner / "deep" / "file"
    deep.parent.mkdir()
    deep.write_text("mine")
    assert find_distrust(deep) == ""
    os.chown(inner, STRANGER, STRANGER)
    assert find_distrust(deep) == f"{inner} belongs to another user ({STRANGER})"


def test_links_are_followed_step_by_step(file: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "hop").symlink_to(file.parent)
    (tmp_path / "link").symlink_to("shared/hop/../folder")
    path = tmp_path / "link" / "file"
    assert path.read_text() == "mine"
    assert find_distrust(path) == ""
    shared.chmod(0o777)
    assert find_distrust(path) == f"others may write to {shared} (mode 777)", "though the file's own folders are safe"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="too many links"):
        find_distrust(tmp_path / "loop" / "file")


@ROOT_ONLY
def test_a_link_that_another_user_made_in_a_sticky_folder(file: Path, tmp_path: Path) -> None:
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    link = sticky / "link"
    link.symlink_to(file)
    assert find_distrust(link) == ""
    os.lchown(link, STRANGER, STRANGER)
    assert find_distrust(link) == f"{link} belongs to another user ({STRANGER})"
