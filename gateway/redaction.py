"""Blacking out what identifies or belongs to somebody, in texts that are kept. Pure; knows no configuration.

Patterns find what has a form: an address without an `@` or a name is not found. Each takes time in proportion to the
text, whatever is in it: a match begins only where a word does, and what a pattern takes it does not give back, or takes
only up to a bound. What was not meant stays readable: card numbers, IBANs and IP addresses are checked.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

_Judge = Callable[[re.Match[str]], int | None]
"""The end of what goes, which begins where the match does; None: it is not what it looked like."""


class _Kind:
    """`needs`: characters of which every such text has at least one: others need not be searched."""

    def __init__(self, needs: str, *patterns: tuple[re.Pattern[str], _Judge]) -> None:
        self._needs = re.compile(needs)
        self._patterns = patterns

    def redact(self, text: str, placeholder: str) -> tuple[str, int]:
        """The text, and how often something went."""
        if self._needs.search(text) is None:
            return text, 0
        total = 0
        for pattern, judge in self._patterns:
            text, count = _replace(pattern, judge, text, placeholder)
            total += count
        return text, total


def _replace(pattern: re.Pattern[str], judge: _Judge, text: str, placeholder: str) -> tuple[str, int]:
    kept, shown_to, at = [], 0, 0
    while (match := pattern.search(text, at)) is not None:
        end = judge(match)
        if end is None:
            at = match.start() + 1
            continue
        kept += [text[shown_to : match.start("it")], placeholder]
        shown_to = at = end
    if not kept:
        return text, 0
    return "".join([*kept, text[shown_to:]]), len(kept) // 2


def _all_of_it(match: re.Match[str]) -> int:
    return match.end("it")


# Secrets

_KEY_BLOCK = re.compile(
    r"(?P<it>-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----(?:[^-]|-(?!----))*+"
    r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----)?)"
)
_KEY_SHAPE = re.compile(
    r"""
    (?<![\w-]) (?P<it>
        (?:sk|pk|rk|ak)-[\w-]{8,}+
      | (?:sk|pk|rk|gsk|hf|fw|r8|ghp|gho|ghu|ghs|ghr|github_pat|glpat|csk|tgp_v1|whsec|npm|pypi)_[\w-]{8,}+
      | (?:xai|nvapi|csk|pplx|tgp|glpat|gsk|hw|sess|xox[abeprs]|xapp|pypi|dop_v1)-[\w-]{8,}+
      | (?:AKIA|ASIA|AROA|AIDA|AGPA)[0-9A-Z]{12,}+
      | AIza[\w-]{20,}+ | ya29\.[\w.-]{10,}+ | AQ\.[\w-]{20,}+ | ABSK[\w+/=-]{20,}+
      | eyJ[\w-]{8,}+\.[\w-]++(?:\.[\w-]*+)?
      | (?=[\w-]{0,200}[0-9])(?=[\w-]{0,200}[A-Z])(?=[\w-]{0,200}[a-z])[\w-]{32,}+={0,2}
    )
    """,
    re.VERBOSE,
)
_AFTER_SCHEME = re.compile(
    r"\b(?:bearer|basic)\s{1,4}(?P<it>(?=[\w.~+/-]{0,64}[0-9=])[\w.~+/-]{8,}+=*+)", re.IGNORECASE
)
_PASSWORD = re.compile(
    r"\b(?:password|passwort|passwd|passphrase|pwd)[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?P<it>[^\s\"',;<>\[]{4,256})",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"""
    \b (?:api[-_ ]?key|access[-_ ]?key|(?:access|auth|refresh|id)[-_ ]?token|client[-_ ]?secret|secret|token)
    ["']?\s{0,3}[:=]\s{0,3}["']? (?P<it>(?=[^\s"',;<>\[]{0,64}[0-9])[^\s"',;<>\[]{6,256})
    """,
    re.VERBOSE | re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"(?<=://)(?P<it>[^\s/@\"'<>\[]{1,256})(?=@)")


# Addresses

_EMAIL = re.compile(r"(?P<it>[\w.+%-](?<![\w.+%-].)[\w.+%-]*+@(?:[\w-]++\.)+[\w-]++)")
_IPV4 = re.compile(r"(?P<it>[0-9](?<![\w.].)[0-9]{0,2}(?:\.[0-9]{1,3}){3})(?!\w|\.[0-9])")
_IPV6 = re.compile(r"(?P<it>[0-9A-Fa-f:](?<![\w:.%].)(?=[0-9A-Fa-f]{0,3}:)[0-9A-Fa-f:.]++)(?!\w)")
_MAX_IPV6 = 45


def _judge_ipv4(match: re.Match[str]) -> int | None:
    return match.end() if all(int(part) <= 255 for part in match["it"].split(".")) else None


def _judge_ipv6(match: re.Match[str]) -> int | None:
    found = match["it"]
    for text in (found, found.rstrip(".:")):
        if text.count(":") >= 2 and text.strip(":.") and len(text) <= _MAX_IPV6:
            try:
                ipaddress.IPv6Address(text)
            except ValueError:
                continue
            return match.start() + len(text)
    return None


# Numbers

_ISSUERS = range(2, 7)
"""First digits of the cards that people pay with."""
_GAP = "[ \u00a0.-]"
_CARD = re.compile(
    rf"(?<!\d)(?P<it>\d{{13,19}}(?!\d)|\d{{4}}(?:{_GAP}\d{{4}}){{2,3}}(?:{_GAP}\d{{1,4}})?(?!\d)"
    rf"|\d{{4}}{_GAP}\d{{6}}{_GAP}\d{{4,5}}(?!\d))"
)
_IBAN = re.compile("(?P<it>[A-Za-z](?<![A-Za-z0-9].)[A-Za-z][0-9]{2}(?:[ \u00a0-]?[A-Za-z0-9]){11,30})")
_IBAN_LENGTHS = MappingProxyType(
    {
        entry[:2]: int(entry[2:])
        for entry in (
            "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 "
            "EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 "
            "KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 "
            "PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 "
            "VA22 VG24 XK20 YE30"
        ).split()
    }
)
"""Characters by country, from the IBAN registry of SWIFT (ISO 13616)."""
_PHONE = re.compile(
    rf"""
    (?<![\w+]) (?P<it>
        (?:\+|00) [1-9] (?:[ \u00a0./()-]{{0,2}}\d){{6,14}}                     # with the country's code
      | \(?0\d{{1,4}}\)? [ \u00a0./-]{{0,2}} \d (?:[ \u00a0./-]?\d){{4,9}}        # with the 0 of trunk calls
      | (?:1{_GAP})? \(?[2-9]\d{{2}}\)? {_GAP}?\d{{3}} {_GAP}\d{{4}}            # North American
    ) (?!\d)
    """,
    re.VERBOSE,
)
_LEAST_PHONE = 7
_DATE = re.compile(r"\d{1,2}[./-]\d{1,2}[./-](?:(?:19|20)\d\d(?!\d)|\d\d$)")


def _judge_card(match: re.Match[str]) -> int | None:
    """What begins the match and passes Luhn's check (ISO/IEC 7812-1, annex B), ending where a group of digits does."""
    found = match["it"]
    digits = [int(char) for char in found if char.isdigit()]
    if digits[0] not in _ISSUERS:
        return None
    seen = len(digits)
    for end in range(len(found), 12, -1):
        if not 13 <= seen:
            break
        if (end == len(found) or not found[end].isdigit()) and found[end - 1].isdigit() and _passes_luhn(digits[:seen]):
            return match.start() + end
        seen -= found[end - 1].isdigit()
    return None


def _passes_luhn(digits: list[int]) -> bool:
    doubled = [2 * digit - 9 if digit > 4 else 2 * digit for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _judge_iban(match: re.Match[str]) -> int | None:
    """The check digits make it 1 modulo 97. Words may follow: groups are set apart as they are."""
    found, text = match["it"], match.string
    length = _IBAN_LENGTHS.get(found[:2].upper(), 0)
    places = [place for place, char in enumerate(found) if char.isalnum()]
    if not length or len(places) < length:
        return None
    end = match.start() + places[length - 1] + 1
    after = text[end : end + 1]
    if after.isascii() and after.isalnum():
        return None
    compact = "".join(found[place] for place in places[:length])
    number = int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4]))
    return end if number % 97 == 1 else None


def _judge_phone(match: re.Match[str]) -> int | None:
    digits = sum(char.isdigit() for char in match["it"])
    return match.end() if digits >= _LEAST_PHONE and _DATE.match(match["it"]) is None else None


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "secret": _Kind(
            r"[-_:=.0-9]",
            (_KEY_BLOCK, _all_of_it),
            (_USER_IN_URL, _all_of_it),
            (_KEY_SHAPE, _all_of_it),
            (_AFTER_SCHEME, _all_of_it),
            (_PASSWORD, _all_of_it),
            (_TOKEN, _all_of_it),
        ),
        "email": _Kind("@", (_EMAIL, _all_of_it)),
        "iban": _Kind("[0-9]", (_IBAN, _judge_iban)),
        "card": _Kind(r"\d", (_CARD, _judge_card)),
        "ip": _Kind("[.:]", (_IPV4, _judge_ipv4), (_IPV6, _judge_ipv6)),
        "phone": _Kind(r"\d", (_PHONE, _judge_phone)),
    }
)
"""In the order in which they are looked for: what is longer and surer comes first."""

KINDS: tuple[str, ...] = tuple(_KINDS)
"""What can be blacked out: keys, tokens and passwords; e-mail addresses; IBANs; card, IP and phone numbers."""


def redact(text: str, kinds: Collection[str], counts: dict[str, int] | None = None) -> str:
    """The text with `[email]` and so on in place of what is of these kinds. `counts`: of each, how many went, added."""
    for name in KINDS:
        if name in kinds:
            text, count = _KINDS[name].redact(text, f"[{name}]")
            if count and counts is not None:
                counts[name] = counts.get(name, 0) + count
    return text
