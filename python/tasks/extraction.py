r"""Where in a text its answer stands, and numbers however they are written.

A mark is a form in which tasks ask for answers: `tags` <answer>18</answer>, `boxed` \boxed{18}, `hashes` a
line "#### 18", `bare` the answer and nothing else. An answer with the mark that was asked for is formatted;
one found elsewhere is an answer all the same. What a model only thinks, and what follows once it goes on to
a question of its own making, as base models do, is no answer. Every function takes time linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import NamedTuple

MARKS = ("tags", "boxed", "hashes", "bare")
TAIL = 20_000  # characters of a text that are looked at, from its end
PLACES = 3  # questions that are looked at for what stands before them
ECHO = 40  # characters at the end of a prompt that tell it in a text

_THOUGHT = "</think>"
_TURN = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id|end_of_text)\|>|</s>|<end_of_turn>")
_NEXT = re.compile(
    r"^[ \t]{0,8}(?:Question|Problem|Exercise|Q|User|Human|Instruction)[ ]?(\d{1,4})?[ ]?:", re.MULTILINE
)
_ANSWERED = re.compile(
    r"\\(?:boxed|fbox)\s{0,9}\{[^}]|</\s{0,9}answer|####\W{0,9}\d|\banswer\b\W{0,4}(?:is\b|[:：=])",
    re.IGNORECASE,
)
_TAG = re.compile(r"<(/?)\s*answer\s*>", re.IGNORECASE)
_BRACE = re.compile(r"(\\(?:boxed|fbox)\s{0,9}\{)|\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(r"\banswer\b\W{0,4}(?:is\b|[:：=])[\s:*]*([^\n]*)", re.IGNORECASE)
_SENTENCE = re.compile(r"[.;!?](?=\s|$)")

_HASHES = re.compile(r"(^[^\w\n#]{0,9})?####[#\s]{0,9}([^\n]*)", re.MULTILINE)
_DIGIT = re.compile(r"\d")
_STATED = re.compile(r"(?:[^\w\n]|\b(?:the|final|answer|is)\b)*\d", re.IGNORECASE)
_GOES_ON = re.compile(r"\s?(?:[-+*/^]|x(?=\s?\d))\s?[($\d]")

_NUMBER = re.compile(
    r"""(?<!\w)(?<!\d[.])(?=[-+]?\s?[.]?\d)
        (?:(?<![\d)]\s)(?P<sign>[-+])(?:(?<=[=(][-+])\s|(?<=[=(]\s[-+])\s)?)?
        (?:(?P<whole>\d{1,100})\s(?=\d{1,100}\s?/\s?\d))?       # 2 1/2
        (?P<integer>\d{1,3}(?:,\d{2,3}){0,30},\d{3}(?!\d)|\d{1,100})?
        (?P<decimals>\.\d{1,100})?
        (?:[eE](?P<exponent>[-+]?\d{1,2}))?
        (?:\s?/\s?(?P<denominator>\d{1,100})(?![.]?\d))?""",
    re.VERBOSE | re.ASCII,
)
_GROUPS = re.compile(r"\d{1,3}(?: \d{3}){1,30}(?:\.\d{1,100})?", re.ASCII)
_CURRENCY = re.compile(r"(?<!\w)[$€£¥₹]\s?(?=[-+.\d])")
_RATIO = re.compile(r"([-+]?)\(\((\d{1,100})\)/\((\d{1,100})\)\)", re.ASCII)
_AROUND = "$€£¥₹ \t\n*_`'\"()"

_LATEX = [
    (re.compile(pattern), text)
    for pattern, text in (
        (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
        (r"\\[dtc]?frac\s*(\d)\s*(\d)", r"((\1)/(\2))"),
        (r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:times|cdot|ast)(?![a-zA-Z])", "*"),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|\\[;:()\[\] ]|~", " "),
        (r"\\!", ""),
        (r"\\,", "\u2009"),
        (r"\{,\}", ","),
        (r"\\([%$&#])", r"\1"),
    )
]
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d\u2796", "-"),
        **dict.fromkeys("\u00d7\u22c5\u00b7\u2217\u2715", "*"),
        **dict.fromkeys("\u00f7\u2215\u2044\u2797", "/"),
        "\u2795": "+",
        "\u066b": ".",
        "\u066c": ",",
        "\u202f": "\u2009",
        "\u00a0": "\u2009",
        "\ufeff": None,
        "\u200b": None,
    }
)
_THIN = re.compile(r"(?<=\d)\u2009(?=\d{3}(?!\d))")


class Found(NamedTuple):
    """A place of a text where its answer may stand."""

    mark: str  # of MARKS; "said" for what follows "answer is", "text" for the whole text
    content: str
    asked: bool  # by this mark or, for the whole text, by no mark


def marked(text: str, asked: str | None = None, prompt: str = "") -> Iterator[Found]:
    """Where the answer may stand, best guess first: in each mark, in what is said, in the whole text.

    Of several tags, boxes or phrases the last counts, of several lines with hashes the first, as in GSM8K.
    asked: the mark that was asked for, which comes first; None takes any.   prompt: what the text answers.
    """
    text = concluding(text, prompt)[-TAIL:].strip()
    found = {"tags": _tagged(text), "boxed": boxed(text), "hashes": _hashed(text)}
    for mark in sorted(found, key=lambda mark: mark != asked):
        content = (found[mark] or "").strip()
        if content:
            yield Found(mark, content, asked in (mark, None))
    said = [_SENTENCE.split(rest)[0].strip() for rest in _PHRASE.findall(text)]
    yield from (Found("said", rest, False) for rest in [rest for rest in said if rest][-1:])
    if text:
        yield Found("text", text, asked in ("bare", None))


def concluding(text: str, prompt: str = "") -> str:
    """The part of a text that answers: after the thoughts, before another turn or question of its own."""
    text = text.partition(_THOUGHT)[2].strip() or text.strip().removeprefix("<think>").strip()
    answered = _ANSWERED.search(text)
    ends = [turn.start() for turn in _TURN.finditer(text)]
    ends += islice(_following(text, len(text) if answered is None else answered.start()), 1)
    echo = prompt.strip()[-ECHO:]
    if answered and len(echo) == ECHO:
        ends.append(text.find(echo, answered.end()))
    text = text[: min((end for end in ends if end > 0), default=None)]
    return text.rpartition(_THOUGHT)[2].strip() or text


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} whose braces are closed; None without one."""
    opened: list[int | None] = []  # for each open brace, where its box begins, if it is one's
    last, content = -1, None
    for brace in _BRACE.finditer(text):
        if brace[1] or brace[0] == "{":
            opened.append(brace.end() if brace[1] else None)
        elif brace[0] == "}" and opened:
            start = opened.pop()
            if start is not None and start > last:
                last, content = start, text[start : brace.start()]
    return content


def plain(text: str) -> str:
    """The text with ASCII digits, signs and operators in place of those of other scripts and of LaTeX."""
    text = text[-TAIL:]
    if not text.isascii():
        text = "".join(map(_ascii, text)).translate(_SIGNS)
    if "\\" in text or "{" in text:
        for pattern, instead in _LATEX * 2:  # twice: a fraction within a fraction
            text = pattern.sub(instead, text)
    return _THIN.sub("", text).replace("\u2009", " ")


def number(text: str) -> Fraction | None:
    """The number that the text is, up to currency, per cent and emphasis; None where it is none, or more."""
    rest = _simple(plain(text)).strip(_AROUND).rstrip(_AROUND + ".%")
    sign, rest = (rest[0], rest[1:]) if rest[:1] in ("-", "+") else ("", rest)
    rest = rest.lstrip(_AROUND)
    if _GROUPS.fullmatch(rest):
        rest = rest.replace(" ", "")
    match = _NUMBER.fullmatch(sign + rest)
    return None if match is None else _fraction(match)


def stated_number(text: str) -> Fraction | None:
    """The number that an answer in words begins with, as in "18 a day for 7 days", or else its last.

    Of an equation the right side counts.
    """
    left, _, right = _simple(plain(text)).rpartition("=")
    rest = (right if any(map(str.isdecimal, right)) else left).lstrip(_AROUND)
    match = _NUMBER.match(rest)
    value = None if match is None or _GOES_ON.match(rest, match.end()) else _fraction(match)
    return last_number(text) if value is None else value


def is_stated(text: str) -> bool:
    """Whether a number begins the text, but for "the final answer is": "18 eggs", and not "Step 2"."""
    return _STATED.match(text) is not None


def last_number(text: str) -> Fraction | None:
    """The last number in a text, None without one; a hyphen between digits is no sign."""
    matches = reversed(list(_NUMBER.finditer(_simple(plain(text)))))
    return next((value for value in map(_fraction, matches) if value is not None), None)


def _simple(text: str) -> str:
    """((1)/(2)), which `plain` makes of LaTeX's fractions, as 1/2, and -$5 as -5."""
    return _CURRENCY.sub("", _RATIO.sub(lambda m: f"{m[1] or ' '}{m[2]}/{m[3]}", text))


def _fraction(match: re.Match[str]) -> Fraction | None:
    whole, integer, decimals, denominator = match.group("whole", "integer", "decimals", "denominator")
    if integer is None and decimals is None:
        return None
    size = Fraction((integer or "0").replace(",", "") + (decimals or ""))
    size *= Fraction(10) ** int(match["exponent"] or 0)
    if denominator is not None:
        if int(denominator) == 0:
            return None
        size /= int(denominator)
    size += int(whole or 0)
    return -size if match["sign"] == "-" else size


def _ascii(character: str) -> str:
    """A digit or fraction of any script as ASCII; a full-width sign as the common one."""
    if character.isascii():
        return character
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.digit(character))
    simple = unicodedata.normalize("NFKC", character)
    if category == "No" and "\u2044" in simple:
        return f" {simple}"  # 2½ is 2 1/2
    return simple if "\uff01" <= character <= "\uff5e" else character


def _tagged(text: str) -> str | None:
    """What stands in the last <answer> ... </answer>."""
    opened = content = None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            opened = tag.end()
        elif opened is not None:
            content, opened = text[opened : tag.start()], None
    return content


def _hashed(text: str) -> str | None:
    """The rest of a line from #### on: the first that begins so and states a number, or else the last."""
    found = list(_HASHES.finditer(text))
    stated = [line for line in found if is_stated(line[2])]
    begins = [line for line in stated if line[1] is not None]
    return next((line[2] for line in (*begins, *stated, *found[-1:])), None)


def _following(text: str, answered: int) -> Iterator[int]:
    """Where questions begin after an answer: after the place `answered`, or one without a mark.

    Of questions with numbers only the first, since others may be steps.
    """
    numbered = False
    for count, question in enumerate(_NEXT.finditer(text)):
        place = question.start()
        if not (numbered and question[1]) and (
            answered < place or (count < PLACES and _is_answer(text[:place]))
        ):
            yield place
        numbered = numbered or question[1] is not None


def _is_answer(text: str) -> bool:
    """Whether it is one line, or several with a number and a blank line after them, and announces nothing."""
    said = text.strip()
    several = "\n" in said and not (text.endswith("\n\n") and _DIGIT.search(said))
    return bool(said) and not (several or said.endswith(":"))
