"""docs/guarantees.md names tests that are there, and leaves out none that holds one."""

from __future__ import annotations

import re

import hosts

TEXT = (hosts.PROJECT / "docs/guarantees.md").read_text()
NAMED = re.findall(r"`(tests/[\w./]+): ([^`]+)`", TEXT)


def test_every_test_that_is_named_is_there():
    assert len(NAMED) > 50
    for path, words in NAMED:
        assert words in (hosts.PROJECT / path).read_text(), (path, words)


def test_every_thing_that_is_watched_is_promised():
    watched = set(re.findall(r"^ +(SAME\(\w[^)]*\))", (hosts.PROJECT / "tests/guest.h").read_text(), re.M))
    assert watched - {words for _, words in NAMED} == {"SAME(actions[i].sa_mask)"} & watched


def test_every_function_is_called_by_the_guest():
    assert len(hosts.FUNCTIONS) >= 28
    called = set(re.findall(r"\b(opt_\w+)\(", (hosts.PROJECT / "tests/test_guest.c").read_text()))
    assert hosts.FUNCTIONS - called == set()
