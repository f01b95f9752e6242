"""Windows: what is read, and that one which never opens is refused."""

from datetime import date

import pytest

from gateway.config.model import Window
from tests.config.documents import BASE, LIST, MAPPING, TEXT, build, mistakes

CLOCK = 'write it as in `"09:30"`'
DATE = "write it as in `2026-01-31`"


def document(window: str) -> str:
    return BASE + f"routes: [{{policy: x, match: {{window: {window}}}}}]\n"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{}", Window()),
        (
            "{days: [mon, wed-fri], from: '09:00', to: 17:30, zone: Asia/Tokyo, since: 2026-01-01, until: 2026-12-31}",
            Window(
                days=frozenset({0, 2, 3, 4}),
                start=540,
                end=1050,
                zone="Asia/Tokyo",
                since=date(2026, 1, 1),
                until=date(2026, 12, 31),
            ),
        ),
        ("{days: Sat-Mon}", Window(days=frozenset({5, 6, 0}))),
        ("{days: [mon-sun]}", Window()),
        ("{days: [tue-mon]}", Window()),
        ("{days: fri}", Window(days=frozenset({4}))),
        ("{from: 22:00, to: 6:00}", Window(start=1320, end=360)),
        ("{from: 18:00}", Window(start=1080, end=0)),
        ("{to: 06:00}", Window(start=0, end=360)),
        ("{from: 18:00, to: 24:00}", Window(start=1080, end=0)),
        ("{from: 00:00, to: 24:00}", Window()),
        ("{since: 2026-02-28, until: 2026-02-28, days: sat}", Window(
            days=frozenset({5}), since=date(2026, 2, 28), until=date(2026, 2, 28)
        )),
        ("{since: 2026-02-28, until: 2026-03-02, days: mon}", Window(
            days=frozenset({0}), since=date(2026, 2, 28), until=date(2026, 3, 2)
        )),
        # the night that began on Sunday goes on into Monday, the first day
        ("{since: 2026-03-02, until: 2026-03-02, days: sun, from: 22:00, to: 06:00}", Window(
            days=frozenset({6}), start=1320, end=360, since=date(2026, 3, 2), until=date(2026, 3, 2)
        )),
        ("{since: 0001-01-01, until: 0001-01-01, from: 22:00, to: 06:00}", Window(
            start=1320, end=360, since=date(1, 1, 1), until=date(1, 1, 1)
        )),
    ],
)  # fmt: skip
def test_window(written: str, expected: Window) -> None:
    assert build(document(written)).routes[0].match.window == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("[mon]", f"`route-1.match.window` must be a mapping, not a list | {MAPPING}"),
        ("{day: mon}", "unknown key `day` in `route-1.match.window` | did you mean `days`?"),
        ("{days: []}", "`route-1.match.window.days` is empty | name at least one, or remove the key"),
        ("{days: 1}", f"`route-1.match.window.days` must be text or a list, not a number | {LIST}"),
        ("{days: [monday]}", "unknown day `monday` | one of `fri`, `mon`, `sat`, `sun`, `thu`, `tue`, `wed`"),
        ("{days: [mon-fry]}", "unknown day `fry` | one of `fri`, `mon`, `sat`, `sun`, `thu`, `tue`, `wed`"),
        ("{days: [mon-tue-wed]}", "unknown day `tue-wed` | one of `fri`, `mon`, `sat`, `sun`, `thu`, `tue`, `wed`"),
        ("{from: 25:00}", f"`route-1.match.window.from` is not a time of day: `25:00` | {CLOCK}"),
        ("{from: 24:00}", f"`route-1.match.window.from` is not a time of day: `24:00` | {CLOCK}"),
        ("{to: 09:60}", f"`route-1.match.window.to` is not a time of day: `09:60` | {CLOCK}"),
        ("{to: 9am}", f"`route-1.match.window.to` is not a time of day: `9am` | {CLOCK}"),
        ("{to: 9}", f"`route-1.match.window.to` must be text, not a number | {TEXT}"),
        (
            "{from: '09:00', to: 9:00}",
            "`route-1.match.window.to` is when it begins: the window never opens "
            "| for the whole day leave `from` and `to` out",
        ),
        (
            "{to: 00:00}",
            "`route-1.match.window.to` is when it begins: the window never opens "
            "| for the whole day leave `from` and `to` out",
        ),
        ("{zone: Europe/Berln}", "unknown zone `Europe/Berln` | did you mean `Europe/Berlin`?"),
        ("{zone: ../../etc/passwd}", "unknown zone `../../etc/passwd` | an IANA name, as in `Europe/Berlin`, or `UTC`"),
        (f"{{zone: {'z' * 500}}}", f"unknown zone `{'z' * 120}…` | an IANA name, as in `Europe/Berlin`, or `UTC`"),
        ("{since: 2026-13-01}", f"`route-1.match.window.since` is not a date: `2026-13-01` | {DATE}"),
        ("{since: 2026-W01-1}", f"`route-1.match.window.since` is not a date: `2026-W01-1` | {DATE}"),
        ("{until: 20260101}", f"`route-1.match.window.until` must be text, not a number | {TEXT}"),
        (
            "{since: 2026-12-31, until: 2026-01-01}",
            "`route-1.match.window.since` (2026-12-31) is after `until` (2026-01-01): the window never opens "
            "| swap the two",
        ),
        (
            "{since: 2026-02-28, until: 2026-03-01, days: [mon-fri]}",  # a weekend
            "none of the days lies between `since` (2026-02-28) and `until` (2026-03-01): the window never opens "
            "| name a day that does, or remove `days`",
        ),
        (
            "{since: 2026-02-28, until: 2026-02-28, days: fri, from: '06:00', to: '22:00'}",
            "none of the days lies between `since` (2026-02-28) and `until` (2026-02-28): the window never opens "
            "| name a day that does, or remove `days`",
        ),
    ],
)
def test_one_mistake_of_a_window(written: str, expected: str) -> None:
    assert mistakes(document(written)) == [f"10: {expected}"]


@pytest.mark.parametrize("zone", ["America", "europe/berlin", "/etc/localtime"])
def test_no_other_zone_than_one_by_its_name(zone: str) -> None:
    (found,) = mistakes(document(f'{{zone: "{zone}"}}'))
    assert found.startswith("10: unknown zone ")
