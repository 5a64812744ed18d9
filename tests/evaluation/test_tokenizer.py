"""Tokens: those of pycocoevalcap where it is installed, else what it answered.

To compare: .venv/bin/python -m pip install --no-deps pycocoevalcap==1.2 (104 MB); it wants `java`.
"""

import csv
import shutil

import pytest
from conftest import SHARED, needs_captions
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamb.evaluation.tokenizer import tokenize

# What pycocoevalcap 1.2's PTBTokenizer (stanford-corenlp-3.4.1.jar, Java 17) answered, on 2026-11-23.
TOKENS = [
    ("A dog's high-pitched bark, then a siren.", "a dog 's high-pitched bark then a siren"),
    ("“It’s raining” – he said… and it doesn't stop!", "it 's raining he said and it does n't stop"),
    (
        "Birds' wings, (faint) at 5 p.m. near the U.S. border; 1,000 of them: 10-20 at 12:30, 2.5 miles",
        "birds wings -lrb- faint -rrb- at 5 p.m. near the u.s. border 1,000 of them 10-20 at 12:30 2.5 miles",
    ),
    (
        "'A cat meows' and/or a dog barks.Then 'the' bird -- chirps - twice... really?!",
        "a cat meows and/or a dog barks.then the bird chirps twice really ?!",
    ),
    (
        "You cannot hear it & it's gonna rain, isn't it? He'll say they've, I'm, we'd",
        "you can not hear it & it 's gon na rain is n't it he 'll say they 've i 'm we 'd",
    ),
    (
        "Mr. Smith, Dr. No and the lady with the 1980s TV's 'n' R&B etc. at 7 o'clock, ma'am",
        "mr. smith dr. no and the lady with the 1980s tv 's 'n' r&b etc. at 7 o'clock ma'am",
    ),
    (
        "A person snores,  whistles\tand\nsneezes ; over and over .",
        "a person snores whistles and sneezes over and over",
    ),
    (
        "*gulp* 100% of #1 [music] {laughs} snake_case <b>",
        "* gulp * 100 % of # 1 -lsb- music -rsb- -lcb- laughs -rcb- snake_case <b>",
    ),
    (
        "No. 5 is said, no. A man says the letter a. A woman says b. and leaves",
        "no. 5 is said no a man says the letter a a woman says b. and leaves",
    ),
    (
        'A voice says "hello" 3 times in a 10kHz café in the 90\'s at 10:15am',
        "a voice says hello 3 times in a 10khz café in the 90 's at 10:15 am",
    ),
    ("It's. A dog's. The end is b. The man's. 5 p.m. A", "it 's a dog 's the end is b the man 's 5 p.m. a"),
    ("...", ""),
    ("", ""),
]


@pytest.mark.parametrize(("text", "tokens"), TOKENS)
def test_tokens_are_those_that_pycocoevalcap_gave(text, tokens):
    assert tokenize(text) == tokens.split()


@needs_captions
@pytest.mark.skipif(shutil.which("java") is None, reason="java is not here")
def test_every_caption_has_the_tokens_of_pycocoevalcap(monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")  # one short run beside others
    why = "pycocoevalcap is not installed (pip install --no-deps pycocoevalcap==1.2)"
    reference = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer", reason=why)
    captions = []
    for path in sorted((SHARED / "captions").glob("*.csv")):
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                captions += [value for column, value in row.items() if column.startswith("caption")]
    captions = sorted(set(captions))
    assert len(captions) > 80_000
    answers = reference.PTBTokenizer().tokenize({k: [{"caption": text}] for k, text in enumerate(captions)})
    assert {text: answers[k][0] for k, text in enumerate(captions) if answers[k][0].split() != tokenize(text)} == {}


@settings(deadline=None)
@given(st.text())
@example("\U0001f415 a dog\U0001f415barks")
def test_any_text_has_tokens(text):
    for token in tokenize(text):
        assert token
        assert token not in {".", ",", "'", "-", "?", "!", ":", ";"}
        assert token.split() == [token], "no white space"
