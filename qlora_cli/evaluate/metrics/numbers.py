"""Numbers in texts, as people and models write them."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MARK = "####"
"""What GSM8K writes before an answer."""

_SAME = str.maketrans({"\u2212": "-", "\uff0d": "-", "\ufe63": "-", "\uff0b": "+", "\uff0c": ",", "\uff0e": "."})
"""Signs that look like ASCII's: minus, full-width and small hyphen-minus, full-width plus, comma and point."""

_LATEX = {"{,}": ",", "\\,": "\u2009", "\\!": ""}
"""How LaTeX writes what parts thousands."""

_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
"""Fractions that are one character."""

_DIGITS = r"(?:\d{1,3}(?:[,\u202f\u2009]\d{3})+(?![,\u202f\u2009]?\d)|\d+)"

# A sign counts only where no word, number or closing bracket comes before it: "5-3" ends in 3, "= -3" in -3.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)\]}])[-+])?(?:[$\u20ac\u00a3\u00a5\u20b9]\s?)?(?P<late_sign>(?<=[$\u20ac\u00a3\u00a5\u20b9])-)?"
    r"(?:\\[dt]?frac\{(?P<above>\d+)\}\{(?P<below>\d*[1-9]\d*)\}"
    rf"|(?<![A-Za-z_\d])(?P<whole>\d+)\ (?P<part>\d+)/(?P<of>\d*[1-9]\d*)(?![/\d])"
    rf"|(?<![A-Za-z_\d/])(?P<top>{_DIGITS})/(?P<bottom>\d*[1-9]\d*)(?![/\d])"
    rf"|(?<![A-Za-z_])(?P<number>{_DIGITS}(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE](?P<power>[-+]?\d{{1,3}})(?![\w]))?)"
)


def number_match(answer: str, reference: str) -> float:
    """1 if the number of the answer equals that of the reference.

    The usual score of GSM8K (Cobbe et al. 2021, arXiv:2110.14168), whose references end in `#### 42`. An answer without
    a number scores 0; 3.0 is 3, and 1/2 is 0.5.

    >>> number_match("That makes $1,250.00.", "#### 1250"), number_match("6 x 7 = -42", "#### 42")
    (1.0, 0.0)
    """
    expected = number_of(reference)
    return float(expected is not None and number_of(answer) == expected)


def number_fault(reference: str) -> str | None:
    """Why no answer could match the reference.

    >>> number_fault("#### 42"), number_fault("forty-two")
    (None, 'holds no number')
    """
    return None if number_of(reference) is not None else "holds no number"


def number_of(text: str) -> Fraction | None:
    """The number that a text gives as its answer: the one behind the first `####` that has one, else its last.

    Commas are part of a number only where they stand before groups of three digits, and so are the narrow spaces that
    some write there, in LaTeX too: `9{,}500`. Signs of currencies and percent do not count: 50% is 50. A fraction is
    one number, and so is 2 1/2. A digit behind a letter belongs to a word, as in `m2`.

    >>> [str(number_of(text)) for text in ("#### 42, in 24 hours", "1,2,3", "1,234", "from 10 to -$1,000.50")]
    ['42', '3', '1234', '-2001/2']
    >>> [str(number_of(text)) for text in ("x = \\u22125", "5-3 leaves 2", "3/4", "2\\u00bd", "1.5e3", "none")]
    ['-5', '2', '3/4', '5/2', '1500', 'None']
    >>> [str(number_of(text)) for text in (r"\\boxed{$9{,}500}", r"9\\,500 km", r"1{,}2")]
    ['9500', '9500', '2']
    """
    for written, read in _LATEX.items():
        text = text.replace(written, read)
    text = _VULGAR.sub(_spelled, text.translate(_SAME)).replace("\u2044", "/")
    for part in text.split(MARK)[1:]:
        found = next(_NUMBER.finditer(part), None)
        if found is not None:
            return _value(found)
    everywhere = [*_NUMBER.finditer(text)]
    return _value(everywhere[-1]) if everywhere else None


def _spelled(vulgar: re.Match[str]) -> str:
    value = Fraction(unicodedata.numeric(vulgar[0])).limit_denominator(1000)
    return f" {value.numerator}/{value.denominator}"


def _value(found: re.Match[str]) -> Fraction:
    sign = -1 if "-" in (found["sign"], found["late_sign"]) else 1
    if found["above"]:
        return sign * Fraction(int(found["above"]), int(found["below"]))
    if found["whole"]:
        return sign * (int(found["whole"]) + Fraction(int(found["part"]), int(found["of"])))
    if found["top"]:
        return sign * Fraction(_plain(found["top"])) / int(found["bottom"])
    return sign * Fraction(_plain(found["number"])) * Fraction(10) ** int(found["power"] or 0)


def _plain(digits: str) -> str:
    """
    >>> _plain("1,234"), _plain(".5")
    ('1234', '0.5')
    """
    digits = re.sub("[,\u202f\u2009]", "", digits)
    return f"0{digits}" if digits.startswith(".") else digits
