import io
import re
import time

import pytest

from vitreous import console
from vitreous.console import Console, duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (125, "2:05 min"), (3725, "1:02:05 h"), (-3, "0 s")]
)
def test_durations_read_as_people_write_them(seconds, text):
    assert duration(seconds) == text


def test_a_pipe_gets_plain_lines_with_time_left_and_figures(monkeypatch):
    stream, now = io.StringIO(), 100.0
    monkeypatch.setattr(time, "monotonic", lambda: round(now, 6))
    with Console(stream=stream).task("step", 1000, done=200) as task:
        for done in range(201, 1001):
            now += 0.1
            task.update(done, "loss 1.0")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 300/1,000  loss 1.0  1:10 min left"
    assert lines[-1] == "step 1,000/1,000  loss 1.0"
    assert len(lines) == 8
    assert "\r" not in stream.getvalue()


def test_quiet_says_nothing(capsys):
    quiet = Console(quiet=True)
    quiet.say("hello")
    with quiet.task("step", 2) as task:
        task.update(2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_of_80_columns_shows_a_bar_the_time_left_and_all_figures(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    figures = "loss 0.468  accuracy 83.5%  1,843 images/s  data wait 39%  test 89.1%"

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Console(stream=stream).task("step", 0) as task:
        assert isinstance(task, console.LiveTask)
        task.expect(13_800)
        time.sleep(0.01)
        task.update(6_900, figures)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "6,900/13,800  0 s left" in shown
    assert figures in shown


def test_nobody_listens_where_the_shell_has_closed_stderr(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    console = Console()
    console.say("nothing")
    with console.task("image", 3) as task:
        task.update(3)


def test_a_name_from_an_archive_commands_no_terminal(vitreous, tmp_path):
    stream = io.StringIO()
    Console(stream=stream).say("cat\n\x1b]0;owned\x07\x9b2J żółw 猫")
    assert stream.getvalue() == "cat\\n\\x1b]0;owned\\x07\\x9b2J żółw 猫\n"
    odd = tmp_path / "odd\x1b[2J\x07"
    odd.mkdir()
    err = vitreous("fit", odd).err
    assert "odd\\x1b[2J\\x07 holds no images" in err
    assert "\x1b" not in err
