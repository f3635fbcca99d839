"""When a schedule ticks next: five fields of cron read as cron, Airflow and Kubernetes read them.

A day counts when month, day and weekday match; where day and weekday are both given, either of the two is
enough. A time of day that a change of the clocks leaves out is left out, one that comes twice ticks once.
"""

from __future__ import annotations

import datetime
import zoneinfo

_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
# A 29th of February that is a Monday comes every 28 years at most, every 40 around 2100.
_DAYS = 41 * 366


def next_times(schedule: str, timezone: str, after: datetime.datetime, count: int) -> list[datetime.datetime]:
    """The first `count` ticks later than `after`, in the schedule's zone; fewer where it ticks no more.

    Args:
        after: with a time zone.
    """
    zone = zoneinfo.ZoneInfo(timezone)
    minutes, hours, days, months, weekdays = (
        _values(text, low, high) for text, (low, high) in zip(schedule.split(), _RANGES, strict=True)
    )
    weekdays = {day % 7 for day in weekdays}
    _, _, day_text, _, weekday_text = schedule.split()
    either = "*" not in (day_text, weekday_text)
    first = after.astimezone(zone).date()
    found: list[datetime.datetime] = []
    for offset in range(_DAYS):
        date = first + datetime.timedelta(days=offset)
        by_day, by_weekday = date.day in days, date.isoweekday() % 7 in weekdays
        if date.month not in months or not ((by_day or by_weekday) if either else (by_day and by_weekday)):
            continue
        for hour in sorted(hours):
            for minute in sorted(minutes):
                moment = datetime.datetime.combine(date, datetime.time(hour, minute), zone)
                if moment > after and _exists(moment):
                    found.append(moment)
                    if len(found) == count:
                        return found
    return found


def _values(text: str, low: int, high: int) -> set[int]:
    values: set[int] = set()
    for item in text.split(","):
        body, _, step = item.partition("/")
        first, _, last = (f"{low}-{high}" if body == "*" else body).partition("-")
        values |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return values


def _exists(moment: datetime.datetime) -> bool:
    there_and_back = moment.astimezone(datetime.UTC).astimezone(moment.tzinfo)
    return there_and_back.replace(tzinfo=None) == moment.replace(tzinfo=None)
