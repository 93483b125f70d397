"""Files are whole or not there; one process at a time."""

import contextlib
import subprocess
import sys

import pytest
from helpers import ROOT

from common import UserError
from common.files import alone, lock, remove_parts, replacing, write_atomically, write_json


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    write_atomically(path, "é")
    assert path.read_bytes() == "é".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("a bug")])
def test_what_goes_wrong_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "picture.png"
    path.write_text("the old one")
    raised = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(raised) as caught, replacing(path) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("half of it")
        assert path.read_text() == "the old one"
        raise error
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]
    if raised is UserError:
        assert str(caught.value) == f"cannot write {path}: No space left on device."


def test_what_a_killed_process_has_left_can_be_removed(tmp_path):
    killed = (
        "import os, pathlib, sys; from common.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as part: part.touch(); os.kill(os.getpid(), 9)"
    )
    (tmp_path / "checkpoint").touch()
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "checkpoint")], cwd=ROOT)
    assert len(list(tmp_path.iterdir())) == 2
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*nowhere/a\.json: No such file or directory\."):
        write_json(tmp_path / "nowhere" / "a.json", {})


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path, capsys):
    holder = (
        "import contextlib, pathlib, sys; from common.files import lock\n"
        "with contextlib.ExitStack() as files:\n"
        "    print(lock(pathlib.Path(sys.argv[1]), files), flush=True)\n"
        "    sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], cwd=ROOT, **pipes)
    assert process.stdout.readline() == "True\n"
    with contextlib.ExitStack() as files:
        assert not lock(tmp_path, files)
    process.kill()
    process.communicate()
    with contextlib.ExitStack() as files:
        assert lock(tmp_path, files)
        assert not capsys.readouterr().out


def test_whoever_waits_says_for_what(tmp_path):
    waiter = (
        "import pathlib, sys; from common.files import alone\n"
        "with alone(pathlib.Path(sys.argv[1]), 'reading'): print('its turn')"
    )
    with alone(tmp_path / "lock", "writing"):
        process = subprocess.Popen(
            [sys.executable, "-c", waiter, str(tmp_path / "lock")], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "another process is reading; waiting for it\n"
        assert process.poll() is None
    assert process.communicate(timeout=60)[0] == "its turn\n"
