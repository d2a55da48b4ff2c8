"""The numbers of a run, on a clock that the test moves."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.progress.meter import FileMeter, Meter, State
from perfkit.progress.pace import Pace
from tests.support.clock import Clock

MIB = 1 << 20


def begun(meter: Meter, name: str, total: int | None) -> FileMeter:
    file = meter.file(name)
    file.start(total)
    return file


def test_speed_is_of_the_last_seconds(meter: Meter, clock: Clock) -> None:
    """Twenty fast seconds, then twenty slow ones: the speed shown is the slow one."""
    meter.expect(1)
    file = begun(meter, "f", 2000 * MIB)
    for speed in (50 * MIB, MIB):
        for _ in range(200):
            clock.now += 0.1
            file.advance(speed // 10)
            snapshot = meter.snapshot()
        assert snapshot.speed_bytes_per_s == pytest.approx(speed, rel=0.03)
        assert snapshot.active[0].speed_bytes_per_s == pytest.approx(speed, rel=0.03)
    assert snapshot.eta_s == pytest.approx(2000 - 1020, rel=0.03)


def test_silence_brings_the_speed_to_nothing(meter: Meter, clock: Clock) -> None:
    """The speed is that of the last seconds; the time left is that at the speed at which bytes came."""
    meter.expect(1)
    file = begun(meter, "f", 10 * MIB)
    clock.now += 1.0
    file.advance(MIB)
    assert meter.snapshot().speed_bytes_per_s == MIB
    for _ in range(60):
        clock.now += 0.1
        snapshot = meter.snapshot()
    assert snapshot.speed_bytes_per_s == 0.0
    assert snapshot.eta_s == pytest.approx(9.0)


def test_resumed_bytes_are_there_but_not_fast(meter: Meter, clock: Clock) -> None:
    """900 of 1000 MiB from an earlier run: 90 % done, and the speed is that of the network."""
    meter.expect(1)
    file = begun(meter, "f", 1000 * MIB)
    file.resumed(900 * MIB)
    clock.now += 2.0
    file.advance(20 * MIB)
    snapshot = meter.snapshot()
    assert (snapshot.received_bytes, snapshot.resumed_bytes) == (920 * MIB, 900 * MIB)
    assert snapshot.speed_bytes_per_s == 10 * MIB
    assert snapshot.eta_s == pytest.approx(8.0)


def test_all_files_together(meter: Meter, clock: Clock) -> None:
    """The total line is the sum of the files, done ones included."""
    meter.expect(3)
    first, second = begun(meter, "a", 100), begun(meter, "b", 300)
    first.advance(100)
    first.done()
    second.advance(150)
    clock.now += 1.0
    snapshot = meter.snapshot()
    assert (snapshot.files_total, snapshot.files_done, snapshot.received_bytes) == (3, 1, 250)
    assert (snapshot.known_bytes, snapshot.total_bytes, snapshot.total_estimated) == (400, 600, True)
    assert snapshot.speed_bytes_per_s == 250.0
    assert [each.name for each in snapshot.active] == ["b"]
    assert [(each.name, each.state) for each in snapshot.finished] == [("a", State.DONE)]
    assert meter.snapshot().finished == ()
    third = begun(meter, "c", 50)
    assert (meter.snapshot().total_bytes, meter.snapshot().total_estimated) == (450, False)
    second.advance(150)
    third.advance(50)
    second.done()
    third.done()
    snapshot = meter.snapshot()
    assert (snapshot.received_bytes, snapshot.total_bytes, snapshot.eta_s) == (450, 450, 0.0)


def test_a_size_that_becomes_known_late(meter: Meter) -> None:
    """The size of a chunked body is known with its last byte."""
    meter.expect(1)
    file = begun(meter, "f", None)
    file.advance(70)
    assert meter.snapshot().total_bytes is None
    assert meter.snapshot().active[0].eta_s is None
    file.start(70)
    assert meter.snapshot().total_bytes == 70
    file.done()
    assert meter.snapshot().total_bytes == 70


def test_a_file_that_is_longer_than_estimated(meter: Meter, clock: Clock) -> None:
    """No time left is shown for it: all that was expected has come, and more may follow."""
    meter.expect(2)
    begun(meter, "known", 100).advance(100)
    unknown = begun(meter, "unknown", None)
    clock.now += 1.0
    unknown.advance(500)
    snapshot = meter.snapshot()
    assert (snapshot.received_bytes, snapshot.total_bytes, snapshot.total_estimated) == (600, 600, True)
    assert snapshot.eta_s is None


def test_a_size_that_changes(meter: Meter) -> None:
    """The file became another one at the origin: the old size no longer counts."""
    meter.expect(1)
    file = begun(meter, "f", 1000)
    file.advance(600)
    file.reset()
    file.start(400)
    file.advance(10)
    snapshot = meter.snapshot()
    assert (snapshot.received_bytes, snapshot.total_bytes) == (10, 400)


def test_a_retry_rolls_back_what_was_there(meter: Meter, clock: Clock) -> None:
    """From the first byte again: received falls to nothing, speed does not go negative."""
    meter.expect(1)
    file = begun(meter, "f", 1000)
    file.resumed(300)
    file.advance(500)
    clock.now += 1.0
    meter.snapshot()
    file.retrying()
    file.reset()
    clock.now += 1.0
    snapshot = meter.snapshot()
    assert (snapshot.received_bytes, snapshot.resumed_bytes, snapshot.total_bytes) == (0, 0, 1000)
    assert snapshot.speed_bytes_per_s == 250.0
    assert snapshot.active[0].state is State.RETRYING
    file.advance(1)
    assert meter.snapshot().active[0].state is State.ACTIVE


def test_a_failed_file_no_longer_counts(meter: Meter) -> None:
    """Neither its bytes nor its size; and nothing that comes after its end does."""
    meter.expect(2)
    good, bad = begun(meter, "good", 100), begun(meter, "bad", 900)
    good.resumed(10)
    bad.resumed(20)
    bad.advance(400)
    bad.failed()
    good.advance(90)
    good.done()
    for late in (bad.done, bad.failed, bad.retrying, bad.verifying, bad.reset, good.failed):
        late()
    bad.advance(5)
    bad.resumed(5)
    bad.start(7)
    snapshot = meter.snapshot()
    assert (snapshot.files_done, snapshot.files_failed) == (1, 1)
    assert (snapshot.received_bytes, snapshot.resumed_bytes, snapshot.total_bytes) == (100, 10, 100)
    assert snapshot.active == ()
    assert [each.state for each in snapshot.finished] == [State.FAILED, State.DONE]


def test_a_list_of_unknown_length(meter: Meter) -> None:
    """While the list is read, the total is unknown; at its end it is known."""
    meter.expect(None)
    meter.expect(1)
    begun(meter, "f", 10)
    assert (meter.snapshot().files_total, meter.snapshot().total_bytes) == (None, None)
    meter.all_known()
    assert (meter.snapshot().files_total, meter.snapshot().total_bytes) == (1, 10)


def test_estimate_by_files_while_sizes_are_missing(meter: Meter, clock: Clock) -> None:
    """25 of 100 files in 10 s: 30 s for the rest."""
    meter.expect(100)
    for number in range(25):
        begun(meter, str(number), 10).done()
    clock.now += 10.0
    assert meter.snapshot().eta_s == pytest.approx(30.0)
    assert meter.snapshot().share == 0.25


def test_sizes_that_the_caller_knows(meter: Meter) -> None:
    """They count before the files begin; what the server says replaces them."""
    meter.expect(2)
    first, _ = meter.file("a", total_bytes=100), meter.file("b", total_bytes=300)
    assert (meter.snapshot().total_bytes, meter.snapshot().total_estimated) == (400, False)
    first.start(None)
    assert meter.snapshot().active[0].total_bytes == 100
    first.start(150)
    assert meter.snapshot().total_bytes == 450


def test_the_first_sizes_alone_say_nothing(meter: Meter, clock: Clock) -> None:
    """Half a second passes before an estimated total moves the percentage, which could not go back."""
    meter.expect(6)
    for number in range(4):
        begun(meter, str(number), 20_000).advance(20_000)
    assert meter.snapshot().share is None
    clock.now += 0.2
    for size in (30_000_000, 20_000_000):
        begun(meter, str(size), size)
    clock.now += 0.8
    assert meter.snapshot().share == pytest.approx(80_000 / 50_080_000)


def test_a_share_never_falls(meter: Meter, clock: Clock) -> None:
    """Neither by a size that turns out larger, nor by a retry from the first byte; and it is 1 only at the end."""
    meter.expect(1)
    file = begun(meter, "f", 100)
    file.advance(80)
    clock.now += 1.0
    assert (meter.snapshot().share, meter.snapshot().active[0].share) == (0.8, 0.8)
    file.reset()
    file.start(1000)
    assert (meter.snapshot().share, meter.snapshot().active[0].share) == (0.8, 0.8)
    file.advance(1000)
    assert 0.99 < (meter.snapshot().share or 0) < 1
    file.done()
    assert meter.snapshot().share == 1.0


def test_what_the_end_tells(meter: Meter, clock: Clock) -> None:
    """Unchanged, resumed, failed with reasons, not finished, and what is kept of it."""
    meter.expect(6)
    same, resumed, whole, *bad = (begun(meter, str(number), 100) for number in range(6))
    same.done(unchanged=True)
    resumed.resumed(60)
    clock.now += 2.0
    for file, count in ((resumed, 40), (whole, 100), (bad[2], 30)):
        file.advance(count)
    resumed.done()
    whole.done()
    bad[0].failed("HTTP status 404")
    bad[1].failed("HTTP status 404")
    bad[2].failed("cancelled", kept=True, cancelled=True)
    end = meter.snapshot()
    assert (end.files_done, end.files_unchanged, end.files_resumed, end.resumed_bytes) == (3, 1, 1, 60)
    assert (end.files_failed, end.failures) == (2, (("HTTP status 404", 2),))
    assert (end.files_cancelled, end.kept_bytes, end.share) == (1, 30, 1.0)
    ends = {each.name: each for each in end.finished}
    assert (ends["0"].unchanged, ends["3"].reason, ends["5"].state) == (True, "HTTP status 404", State.CANCELLED)
    assert ends["1"].speed_bytes_per_s == 20.0  # the mean, of what came now


def test_a_retry_says_why_and_when(meter: Meter, clock: Clock) -> None:
    """The reason, which try it was, and how long until the next one; no more once bytes come."""
    meter.expect(1)
    file = begun(meter, "f", 100)
    file.retrying("connection reset", 5.0)
    file.retrying("HTTP status 503", 5.0)
    clock.now += 2.0
    (seen,) = meter.snapshot().active
    assert (seen.state, seen.reason, seen.retries, seen.retry_in_s) == (State.RETRYING, "HTTP status 503", 2, 3.0)
    file.advance(1)
    (seen,) = meter.snapshot().active
    assert (seen.state, seen.reason, seen.retry_in_s) == (State.ACTIVE, "", None)


@pytest.mark.parametrize("silence_s", [3.0, 60.0, 8 * 3600.0])
def test_a_silence_does_not_change_the_time_left(silence_s: float) -> None:
    """A stall, a wait before a retry, a closed gate, a laptop that slept: then it goes on as before."""
    pace, now, total = Pace(0.0), 0.0, 0
    for step in range(400):
        now += 0.1 if step != 200 else silence_s
        total += 1000
        pace.record(now, total)
        assert pace.eta_s(500_000) == pytest.approx(50.0, rel=0.2)


def test_the_wait_for_the_first_bytes_does_not_count() -> None:
    """Name look-up, connection and answer take two seconds; what then comes has its own speed."""
    pace = Pace(0.0)
    for step in range(20):
        pace.record(step / 10, 0)
    for step in range(20, 40):
        pace.record(step / 10, (step - 19) * 1000)
        assert pace.eta_s(100_000) == pytest.approx(10.0, rel=0.01)


def test_bytes_that_come_in_bursts() -> None:
    """A slow server that answers with a small file every 1.5 s: the pauses belong to the speed."""
    pace = Pace(0.0)
    for tick in range(1, 300):
        pace.record(tick / 10, tick // 15 * 15_000)
    assert pace.eta_s(100_000) == pytest.approx(10.0, rel=0.15)


def test_five_thousand_files(meter: Meter) -> None:
    """The sums hold; each finished file is in one snapshot, which lists a hundred at most."""
    meter.expect(5000)
    files = [begun(meter, str(number), number) for number in range(5000)]
    assert meter.snapshot().total_bytes == sum(range(5000))
    for number, file in enumerate(files):
        file.advance(number)
        file.done()
    snapshot = meter.snapshot()
    assert (snapshot.files_done, snapshot.received_bytes) == (5000, sum(range(5000)))
    assert [each.name for each in snapshot.finished] == [str(number) for number in range(4900, 5000)]
    assert snapshot.active == ()


def test_many_threads_lose_nothing(meter: Meter) -> None:
    """Segments of one file are counted by as many workers."""
    meter.expect(1)
    file = begun(meter, "f", 80_000)
    threads = [threading.Thread(target=lambda: [file.advance(1) for _ in range(10_000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.snapshot().received_bytes == file.received_bytes == 80_000


@pytest.mark.once
def test_samples_are_few() -> None:
    """A window that is asked a million times a second keeps a sample for each tenth of a second."""
    pace = Pace(0.0)
    for step in range(100_000):
        pace.record(step / 10_000, step)
    assert len(pace._recent) < 60
    assert len(pace._flow) < 110


_STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["start", "resumed", "advance", "reset", "retrying", "verifying", "done", "failed"]),
        st.one_of(st.none(), st.integers(0, 10**6)),
        st.floats(0.0, 20.0),
    ),
    max_size=80,
)


@pytest.mark.once
@given(_STEPS)
def test_never_negative_whatever_happens(steps: list[tuple[int, str, int | None, float]]) -> None:
    """Any order of events: no number falls below zero, and a finished run has all of what it says there is."""
    clock = Clock()
    meter = Meter(clock=clock)
    meter.expect(4)
    files = [meter.file(str(number)) for number in range(4)]
    shares = [0.0]
    for index, event, count, wait_s in steps:
        match event:
            case "start":
                files[index].start(count)
            case "resumed" | "advance":
                getattr(files[index], event)(count or 0)
            case _:
                getattr(files[index], event)()
        clock.now += wait_s
        seen = meter.snapshot()
        numbers = [
            seen.received_bytes,
            seen.resumed_bytes,
            seen.known_bytes,
            seen.speed_bytes_per_s,
            seen.eta_s or 0,
            seen.files_done,
            seen.files_failed,
            seen.total_bytes or 0,
        ]
        for each in (*seen.active, *seen.finished):
            numbers += [each.received_bytes, each.resumed_bytes, each.speed_bytes_per_s, each.eta_s or 0]
        assert min(numbers) >= 0
        shares += [] if seen.share is None else [seen.share]
        ended = seen.files_done + seen.files_failed == 4
        assert seen.share is None or (seen.share == 1.0) == ended
        assert seen.resumed_bytes <= seen.received_bytes
    for file in files:
        file.done()
    assert shares == sorted(shares)
    end = meter.snapshot()
    assert end.share == 1.0
    assert end.files_done + end.files_failed == end.files_total == 4
    assert end.received_bytes == end.total_bytes == end.known_bytes
    assert end.active == ()
