"""Shares of the rails: what a job asks for, what the site's rules say, what comes of both.

A job asks with ``--fabric-share=60`` (60 % of every rail are guaranteed to it) or ``60-80`` (and it
gets no more than 80 %). A rule is a text of words, ``qos=debug guarantee=10 class=first``: what it
is about (``partition``, ``qos``, ``account``; a job must match all that are given) and what then
holds (``guarantee`` and ``ceiling`` in percent; ``class``: ``first``, ``normal`` or ``last``).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fabricctl.errors import DataError

CLASSES = ("first", "normal", "last")
_ASKED = re.compile(r"([0-9]{1,3})(?:-([0-9]{1,3}))?")
_ABOUT = ("partition", "qos", "account")
_SAYS = ("guarantee", "ceiling", "class")
_NAME = re.compile(r"[^\s=]{1,64}")


@dataclass(frozen=True)
class Share:
    """Of every rail of the job's nodes, in percent."""

    guarantee: int = 0
    ceiling: int = 100
    priority: str = "normal"  # one of CLASSES


@dataclass(frozen=True)
class Rule:
    """One of ``share.rules``; None: it says nothing on it."""

    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    guarantee: int | None = None
    ceiling: int | None = None
    priority: str | None = None

    def matches(self, partition: str, qos: str, account: str) -> bool:
        """Whether a job is one that the rule is about."""
        about = ((self.partition, partition), (self.qos, qos), (self.account, account))
        return all(wanted in (None, has) for wanted, has in about)


def parse_asked(text: str) -> tuple[int, int]:
    """Guarantee and ceiling of ``--fabric-share``; raises :class:`DataError`."""
    found = _ASKED.fullmatch(text)
    if found:
        guarantee, ceiling = int(found[1]), int(found[2] or 100)
        if guarantee <= ceiling <= 100 and ceiling > 0:
            return guarantee, ceiling
    raise DataError(f"share {text[:20]!r}: say it as 60 or 60-80, in percent of each rail")


def parse_rule(text: str) -> Rule:
    """Raises :class:`DataError` that names the word that is wrong."""
    given: dict[str, str] = {}
    for word in text.split():
        key, _, value = word.partition("=")
        if key not in (*_ABOUT, *_SAYS):
            known = ", ".join((*_ABOUT, *_SAYS))
            raise DataError(f"rule {text[:60]!r}: {key[:20]!r} is none of {known}")
        if key in given or not _NAME.fullmatch(value):
            raise DataError(f"rule {text[:60]!r}: {key} needs one value")
        given[key] = value
    if not any(key in given for key in _SAYS):
        raise DataError(f"rule {text[:60]!r}: says none of {', '.join(_SAYS)}")
    if given.get("class", "normal") not in CLASSES:
        raise DataError(f"rule {text[:60]!r}: class is one of {', '.join(CLASSES)}")
    guarantee, ceiling = _percent(given, "guarantee", 0), _percent(given, "ceiling", 1)
    if guarantee is not None and guarantee > (100 if ceiling is None else ceiling):
        raise DataError(f"rule {text[:60]!r}: guarantees more than its ceiling")
    return Rule(
        partition=given.get("partition"),
        qos=given.get("qos"),
        account=given.get("account"),
        guarantee=guarantee,
        ceiling=ceiling,
        priority=given.get("class"),
    )


def _percent(given: dict[str, str], key: str, least: int) -> int | None:
    if key not in given:
        return None
    if not re.fullmatch("[0-9]{1,3}", given[key]) or not least <= int(given[key]) <= 100:
        raise DataError(f"{key}={given[key][:20]}: not a number of {least} to 100")
    return int(given[key])


def decide(
    asked: str | None,
    rules: Iterable[Rule],
    most: int,
    *,
    partition: str = "",
    qos: str = "",
    account: str = "",
) -> Share | None:
    """What a job gets; None: no share, it is one of everybody else.

    ``asked``: what ``--fabric-share`` said, which :func:`parse_asked` takes; ``most``: the
    site's ``share.max_percent``. Of the rules that match, the first that says a thing decides on
    it; a job cannot ask for more than a rule's ceiling.
    """
    matching = [rule for rule in rules if rule.matches(partition, qos, account)]
    if asked is None and not matching:
        return None
    guarantee = next((rule.guarantee for rule in matching if rule.guarantee is not None), 0)
    ceiling = next((rule.ceiling for rule in matching if rule.ceiling is not None), 100)
    priority = next((rule.priority for rule in matching if rule.priority is not None), "normal")
    if asked is not None:
        wanted, highest = parse_asked(asked)
        guarantee, ceiling = max(guarantee, min(wanted, most)), min(ceiling, highest)
    return Share(min(guarantee, ceiling), ceiling, priority)
