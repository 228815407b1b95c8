"""The Retry-After header, in all its forms."""

from minigpt.common.net import retry_after_seconds


def test_a_retry_after_header_is_read_as_seconds_or_as_an_http_date():
    for header, seconds in (("2", 2), ("2.5", 2.5), ("0", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)):
        assert retry_after_seconds(header) == seconds
    assert retry_after_seconds("Wed, 21 Oct 2215 07:28:00 GMT") > 1e9
    for header in (None, "", "x", "-1", "1.2.3", "nan", "inf", "Wed, 99 Oct 99999 07:28:00 GMT"):
        assert retry_after_seconds(header) is None, header
