"""The tokens of captions as published scores count them: the Penn Treebank's, without Java.

What pycocoevalcap's PTBTokenizer gives (Stanford's PTBTokenizer, CoreNLP 3.4.1, with -lowerCase, less a list of
punctuation marks). The rules are written from what that program answers, and equal it on every caption of AudioCaps and
Clotho; tests/evaluation/test_tokenizer.py compares the two.
"""

import re
from functools import lru_cache

# Abbreviations that keep their full stop; those that are words besides, and keep it with a capital only; those that
# keep it before a number; the words before which a single letter's full stop ends a sentence.
_ABBREVIATIONS = (
    r"adj|adm|adv|al|ala|alex|apr|asst|aug|ave|bhd|bldg|brig|bros|calif|capt|cf|cie|cmdr|co|col|comdr|conn|corp|cos|cpl|"
    r"ct|dak|dec|det|dr|drs|ens|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|hon|inc|ind|insp|jan|jos|jr|jul|jun|kan|ky|"
    r"lt|ltd|maj|mar|md|messrs|mfg|mlle|mme|mo|mon|mont|mr|mrs|ms|msgr|mt|mtg|neb|nev|nov|oct|penn|pfc|ph\.d|ph|plc|"
    r"pres|prof|pte|pty|pvt|rd|rep|reps|rev|rt|sen|sens|sep|sept|seq|sfc|sgt|spc|sq|sr|st|ste|supt|sys|tel|thu|tue|"
    r"tues|va|vs|vt|wed|wis|wm|wyo"
)
_CAPITAL_ABBREVIATIONS = "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"
_BEFORE_NUMBER = "art|ca|fig|nos?|op|pp|prop"
_SENTENCE_START = re.compile(
    r"(?:A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Now|Once|"
    r"One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You)\b"
)

_A, _L = r"[^\W_]", r"[^\W\d_]"  # a letter or digit; a letter
_NUMBERED = re.compile(rf"(?:{_BEFORE_NUMBER})\.", re.IGNORECASE)
_SINGLE_LETTER = re.compile(rf"{_L}\.")
_CLITIC = r"'(?:[sdm]|ll|re|ve)"
# What a token can be at one place; the longest whole match wins, the first of equals; the token is group 1.
_TOKENS = [
    re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    for ignore_case, pattern in (
        (True, rf"({_L}+?)n't"),  # do|n't
        (True, rf"({_L}+){_CLITIC}(?!{_L})"),  # dog|'s
        (True, rf"(can)not(?!{_A})|(?:(gon|wan)na|(got)ta|(gim|lem)me)(?!{_A})"),
        (True, r"('t)(?:is|was)(?!\w)"),
        (True, rf"({_L}(?:{_A}|_(?={_A}))*(?:[.!?]{_L}(?:{_A}|_(?={_A}))*)*)"),  # word, word.word
        (False, rf"({_A}+)"),  # 40s, 5pm
        (False, r"([+-]?(?:\d*(?:[.,:]\d+)+|\d+))"),  # 1,000 12:30 -0.5
        (False, rf"({_A}(?:{_A}|[.,])*(?:[-\u2010\u2011](?:(?:{_L}\.){{2,}}|{_A}+))+)"),  # high-pitched, 10-20
        (False, rf"({_A}+(?:-{_L}+){{0,2}}(?:/{_A}+(?:-{_L}+){{0,2}}){{1,2}})"),  # and/or, 1/2
        (False, rf"((?:{_L}\.)+)"),  # U.S., p.m., a single letter
        (True, rf"((?:{_ABBREVIATIONS})\.)|((?:{_BEFORE_NUMBER})\.)\d"),
        (False, rf"((?:{_CAPITAL_ABBREVIATIONS})\.)"),
        (True, rf"({_CLITIC}|'n'?)(?!{_L})|(n't|'em|'till?|'cause)"),
        (False, rf"('\d\ds?)(?!{_A}|[:.,-]\d)"),  # '80s
        (True, rf"([dol]'{_L}{_A}+(?:-{_A}+)*)|(c'mon|e'er)(?!{_L})|(ol')(?!{_L})"),  # o'clock
        (True, rf"([dly]')(?={_L})"),  # y'|all
        (False, rf"({_L}+[aeiouyAEIOUY]'[aeiouA-Z]{_L}*)"),  # ma'am
        (False, r"([A-Z]+(?:&[A-Z]+)+)"),  # R&B
        (False, r"(</?[A-Za-z][^<>]*>)"),
        (True, r"(https?://\S*[\w/])|([\w.-]+@[\w-]+(?:\.[\w-]+)+)|([#@][a-z]\w*)"),
        (False, r"([?!]{2,}|_+|\*+|-{2,4}(?!-)|-{5,}|'')"),
        (False, r"(.)"),
    )
]
_SPELT = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "¢": "cents"}
_REMOVED = frozenset([*".?!,:;-'\u2010\u2011", "--", "---", "----", "''"])
_CHARACTERS = str.maketrans(
    {"’": "'", "‛": "'", "…": " ", "\xad": "", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "}
    | {"€": "$", "£": " # "}
    | dict.fromkeys('"`‘‚“”«»‹›–—―\u200b\ufeff', " ")  # quotation marks and dashes: removed in the end
)
_ENTITIES = {"&amp;": " & ", "&lt;": " < ", "&gt;": " > ", "&quot;": " ", "&apos;": " ' ", "&nbsp;": " "}


@lru_cache(maxsize=1 << 16)
def _split(piece: str) -> tuple[str, ...]:
    """Tokens of a piece of text without white space; what is removed is gone."""
    tokens, at = [], 0
    while at < len(piece):
        match = max((m for pattern in _TOKENS if (m := pattern.match(piece, at))), key=re.Match.end)
        group = match.lastindex or 0
        token, at = match[group], match.end(group)
        if token not in _REMOVED:
            tokens.append(_SPELT.get(token, token.lower()))
    return tuple(tokens)


def tokenize(text: str) -> list[str]:
    """The tokens of a caption, lower-cased, without punctuation.

    "The dog's high-pitched bark, (at 5 p.m.)" -> the dog 's high-pitched bark -lrb- at 5 p.m. -rrb-. It is made for
    English captions: smileys and some forms of web addresses and telephone numbers come out otherwise. A caption is
    looked at alone, where Stanford's program reads on into the next one ("... the letter b." before "The ...").
    """
    text = text.translate(_CHARACTERS)
    if not text.isascii():  # emoji and the like are dropped
        text = "".join(c if c <= "\uffff" else " " for c in text)
    if "&" in text:
        for entity, meaning in _ENTITIES.items():
            text = text.replace(entity, meaning)
    pieces = text.split()
    tokens: list[str] = []
    for k, piece in enumerate(pieces):
        found = _split(piece)
        if piece[-1] == "." and k + 1 < len(pieces):  # what comes next decides
            after = pieces[k + 1]
            if after[0].isdigit() and _NUMBERED.fullmatch(piece):
                found = (piece.lower(),)
            elif found and _SINGLE_LETTER.fullmatch(found[-1]) and _SENTENCE_START.match(after):
                found = (*found[:-1], found[-1][0])
        tokens.extend(found)
    return tokens
