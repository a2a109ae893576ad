# ruff: noqa: E501, RUF001
"""Text on which tokenizers differ: the ground on which two of them are compared.

Each stretch aims at one habit: digits, contractions, scripts, emoji, whitespace runs, line ends, code, punctuation, marks.
"""

from __future__ import annotations

from functools import cache

_STRETCHES = (
    "Hello world", "don't DON'T we'll I'VE they're 'tis it's", "a'b ''s 'S 'Re", "naïve café Ünïcode ÉCOLE Été",
    "0 1 12 123 1234 12345 1234567890", "3.14 1,000,000 v2.0 x86_64 2024-11-21", "½ ² Ⅳ ٣ १२३ ０１２", "abc123def 1a2b",
    "你好，世界！今天天气很好。", "東京タワー ひらがな カタカナ ー", "한국어 문장입니다.", "Привет, мир! Ёлка", "Ελληνικά και άλλα",
    "العربية مكتوبة", "עברית", "हिन्दी में पाठ", "ไทย ภาษา", "Tiếng Việt có dấu", "🙂 😀😃 👩‍👩‍👧‍👦 🇩🇪 ❤️", "x\u0302 q\u0303",
    " leading", "trailing ", "two  spaces", "three   spaces   here", "    indent", "\ttab\t\ttabs", "a \t b", "a\u00a0b\u3000c",
    "line\nline", "two\n\nlines", "three\n\n\nlines", "win\r\nlines\r\n\r\n", " \n \n", "x  \n\n  y", "end\n", "\n", "  ", "a   \n",
    "foo.bar(baz)[0] == {'k': \"v\"};", "def f(x):\n    return x**2  # comment\n", "if (a&&b) { c++; }\n\n\t}", "->=>!=<=+++---",
    "$100 €5 £3 100% #tag @user", "...!?!?;;", "http://a.b/c?d=e&f=g#h", "<|im_start|>user\nhi<|im_end|>\n", "\\n \\t C:\\path",
    "(a) [b] {c} <d>", "snake_case camelCase kebab-case", "!word ?word .word ,word /word", "word! word? word.\nword", "a/b\n/c/\n",
    "日本123語", "x1y2 ３Ｄ", "«quoted» “smart” ‘single’ — dash – en", "µ Ω ℝ ∑ ∫ √2 ≈", "\u200b\u200dzero", "ǅ ŉ ſs 'ſ ﬁ",
)  # fmt: skip


@cache
def probes() -> tuple[str, ...]:
    """Each stretch alone, and joined to its neighbour directly, by a space and by a line end.

    All are in Unicode's form NFC: Qwen normalizes to it and llama.cpp does not, which is no matter of the pre-tokenizer.
    """
    pairs = zip(_STRETCHES, (*_STRETCHES[1:], _STRETCHES[0]), strict=True)
    return (*_STRETCHES, *(left + joint + right for left, right in pairs for joint in ("", " ", "\n")))
