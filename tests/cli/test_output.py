import io
import re
import threading
import time

import pytest
from rich.cells import cell_len

from leasemesh.node.cli.notifications import WholeLines
from leasemesh.node.cli.output import Column, Screen, ago, clean, count_of, fit, iso

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (0, "now"),
        (-999, "now"),
        (-SECOND, "1 s ago"),
        (-119 * SECOND, "119 s ago"),
        (-3 * MINUTE, "3 min ago"),
        (-119 * MINUTE, "119 min ago"),
        (-2 * HOUR, "2 h ago"),
        (-47 * HOUR, "47 h ago"),
        (-2 * DAY, "2 d ago"),
        (5 * MINUTE, "in 5 min"),
    ],
)
def test_times_are_told_as_people_do(then, said):
    now = 1_700_000_000_000
    assert ago(now + then, now) == said


def test_iso_times_carry_the_time_zone(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert iso(1_700_000_000_123) == "2023-11-14T22:13:20+00:00"


def test_controls_become_visible_and_other_characters_stay():
    assert clean("a\tb\nc") == "a b c"
    assert clean("\x1b[2J\x9b\u202e\u2066") == "\ufffd[2J\ufffd\ufffd\ufffd"
    assert clean("Größe 👩\u200d👩 日本") == "Größe 👩\u200d👩 日本"


def test_numbers_come_with_their_nouns():
    assert [count_of(1, "event"), count_of(2000, "event"), count_of(0, "entry", "entries")] == [
        "1 event",
        "2,000 events",
        "0 entries",
    ]


def test_a_table_fits_its_screen_by_cutting_the_flexible_column(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "40"), ("LINES", "20"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    screen = Screen(as_json=False)
    columns = [Column("id"), Column("title", flexible=True), Column("count", right=True)]
    screen.console().print(screen.table(columns, [["abcdef", "日本 " * 30, "12"], ["x", "[red]", "1,000"]]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("12") and "…" in lines[1]
    assert "[red]" in lines[2]
    assert max(cell_len(re.sub(r"\x1b\[\d*m", "", line)) for line in lines) == 40


@pytest.mark.parametrize(
    ("needed", "room", "widths"),
    [
        ([10, 5, 20, 7], 60, [10, 5, 20, 7]),
        ([10, 5, 90, 7], 60, [10, 5, 38, 7]),
        ([10, 50, 90, 7], 61, [10, 22, 22, 7]),
        ([10, 50, 90, 7], 20, [10, 12, 12, 7]),
    ],
)
def test_columns_that_may_be_cut_share_what_the_others_leave(needed, room, widths):
    assert fit(needed, [False, True, True, False], room) == widths


def test_nothing_is_cut_when_it_does_not_go_to_a_terminal(capsys):
    screen = Screen(as_json=False)
    screen.console().print(screen.table([Column("title", flexible=True)], [["word " * 100]]))
    assert "word " * 99 in capsys.readouterr().out


def test_what_an_app_prints_arrives_in_whole_lines_or_when_it_is_flushed():
    out = io.StringIO()
    printed = WholeLines(out)
    other = threading.Thread(target=lambda: print("of a thread", file=printed))
    print("half", end="", file=printed)
    other.start()
    other.join()
    assert out.getvalue() == "of a thread\n"
    print(" a line", end="", file=printed, flush=True)
    assert out.getvalue() == "of a thread\nhalf a line"
    print(", and the rest", file=printed)
    assert out.getvalue() == "of a thread\nhalf a line, and the rest\n"
