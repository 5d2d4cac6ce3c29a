"""A run's conf is what anybody with REST access sends: every row is refused with the reason, and at once."""

from __future__ import annotations

from typing import Any

import pytest

from ml_lifecycle_airflow.run_time import RunConfError, read_conf

LONG = "2" * 1_000_000
CLIMB = "../../etc/passwd"
# name: the conf, words of the message
CONFS: dict[str, tuple[dict[str, Any], str]] = {
    "another key": (
        {"as-of": "2013-01-01T00:00:00Z"},
        "unknown keys ['as-of']; a run takes as_of and interval",
    ),
    "a key that climbs": ({CLIMB: 1}, f"unknown keys ['{CLIMB}']"),
    "a long key": ({LONG: 1}, "unknown keys ['222"),
    "a template": (
        {"as_of": "{{ var.value.secret }}"},
        "as_of is '{{ var.value.secret }}'; write a",
    ),
    "a shell": ({"as_of": "2013-01-01T00:00:00Z; rm -rf /"}, "write a time such as"),
    "a line end": ({"as_of": "2013-01-01T00:00:00Z\n"}, "write a time such as"),
    "half a character": ({"as_of": "\ud800"}, "write a time such as"),
    "a long time": ({"as_of": LONG}, "write a time such as"),
    "a number": ({"as_of": 1356998400}, "as_of is 1356998400; write a time such as"),
    "truth": ({"as_of": True}, "as_of is True; write a time such as"),
    "a list": ({"as_of": ["2013-01-01T00:00:00Z"]}, "write a time such as"),
    "no offset": ({"as_of": "2013-01-01T00:00:00"}, "which has no offset; end it with Z for UTC"),
    "before the first year": ({"as_of": "0001-01-01T00:00:00+14:00"}, "write a time such as"),
    "after the last year": ({"as_of": "9999-12-31T23:59:59-14:00"}, "write a time such as"),
    "an interval that is a text": ({"interval": "2013"}, 'interval must be {"start"'),
    "half an interval": ({"interval": {"start": "2013-01-01T00:00:00Z"}}, 'interval must be {"start"'),
    "more than an interval": (
        {"interval": {"start": "2013-01-01T00:00:00Z", "end": "2013-01-02T00:00:00Z", CLIMB: 1}},
        'interval must be {"start"',
    ),
    "an interval of templates": (
        {"interval": {"start": "{{ ds }}", "end": "{{ ds }}"}},
        "interval.start is '{{ ds }}'",
    ),
    "an interval backwards": (
        {"interval": {"start": "2013-01-02T00:00:00Z", "end": "2013-01-01T00:00:00Z"}},
        "must be before its end",
    ),
}


@pytest.mark.parametrize("name", CONFS)
def test_a_bad_conf_is_refused_with_the_reason(name: str) -> None:
    conf, words = CONFS[name]
    with pytest.raises(RunConfError) as raised:
        read_conf(conf)
    assert words in str(raised.value)
    assert len(str(raised.value)) < 500
    assert not raised.value.retryable
