"""A few thousand of the fuzzer's tickets; `make fuzz` tries 100,000."""

from tests.fuzz.tickets import fuzz


def test_changed_tickets_are_read_or_refused():
    counts = fuzz(1500, seed=0)
    assert counts.failures == []
    assert counts.tried == 1500 and counts.ok > 100 and counts.refused > 500
