import random

from pipeline.data.skips import Skips


def test_steps_take_the_batches_that_are_not_in_a_window() -> None:
    skips = Skips(((3, 6), (8, 9)))
    assert [skips.batch(step) for step in range(8)] == [0, 1, 2, 6, 7, 9, 10, 11]
    assert [Skips().batch(step) for step in range(3)] == [0, 1, 2]
    assert Skips(((0, 2),)).batch(0) == 2


def test_any_windows_leave_out_exactly_what_is_in_them() -> None:
    chance = random.Random(5)
    for _ in range(50):
        windows = [(first, first + chance.randint(1, 5)) for first in chance.choices(range(40), k=4)]
        skips = Skips().with_windows(windows[:2]).with_windows(windows[2:])
        left = [batch for batch in range(200) if not any(first <= batch < end for first, end in windows)]
        assert [skips.batch(step) for step in range(100)] == left[:100], windows
