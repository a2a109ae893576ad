# ruff: noqa: RUF001, SIM905 (characters that look alike are the point, and lists of them read best as one string)
"""The texts on which a tokenizer has to agree with a runtime's, chosen for where tokenizers part ways.

Random text of one language finds little: faults sit at digits, runs of blanks, line ends, apostrophes, scripts without
spaces, byte fallback, and where a tag touches text. Every group is small and pure; the mixes put groups side by side,
since most differences need two of them.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

MINIMUM = 2_000
SEED = 20

LANGUAGES = (
    "The quick brown fox jumps over the lazy dog.",
    "Don't you think it's what we'd've said? I'LL SEE; they're O'Brien's.",
    "Portez ce vieux whisky au juge blond qui fume, où l'œuvre naïve s'achève.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia. ¿Y tú? ¡Sí!",
    "À noite, vovô Kowalsky vê o ímã cair no pé do pinguim queixoso.",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Árvíztűrő tükörfúrógép.",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul ILIK ılık.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Чуєш їх, доцю, га? Кумедна ж ти, прощайся без ґольфів!",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر.",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का नाश।",
    "আমি বাংলায় গান গাই।",
    "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது எங்கும் காணோம்.",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน",
    "我能吞下玻璃而不伤身体。今天是2024年3月15日。",
    "いろはにほへと ちりぬるを。カタカナとひらがなと漢字。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "Do bạch kim rất quý, sẽ dùng để lắp vô xương.",
    "ყველა ადამიანი იბადება თავისუფალი.",
    "Բոլոր մարդիկ ծնվում են ազատ։",
    "ሰው ሁሉ ነጻ ሆኖ ይወለዳል።",
)
DIGITS = (
    "9" * 40,
    "1st 2nd 3rd",
    "+1 (555) 010-9999",
    *"0 7 42 007 123 1234 12345 1234567890 3.14159265358979 1,000,000.00 -273.15 1e-10 0xDEADBEEF 0b1010".split(),
    *"192.168.0.1 2024-03-15T12:34:56Z 50% $19.99 v1.2.3-rc4 a1b2c3 ٣٤٥ १२३ １２３ ½ x²+y³ Ⅷ 10⁻³ 七百".split(),
)
BLANKS = (
    *(" " * count for count in (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 64)),
    *("\n" * count for count in (1, 2, 3, 4, 8)),
    *(
        "\t",
        "\t\t",
        "\t\t\t\t",
        "\r\n",
        "\r\n\r\n",
        "\r",
        " \n",
        "\n ",
        " \n \n",
        "  \n\n  ",
        "\t \t",
        "\n\t",
        "\v",
        "\f",
    ),
    *("\u00a0", "\u2003", "\u3000", " \u00a0 ", "\u200b", "\u202f"),
)
PUNCTUATION = (
    *"! ?! ... … — -- --- '' \"\" “quoted” «ça» () [] {} <> </> || <| |> @#$%^&* \\ \\\\ // :// §¶ °C №5 €£¥₹".split(),
    *"C++ C# ±×÷≠≤≥≈∞ →←↑↓ •●○■ a.b.c a,b;c:d e-mail@example.com #tag it's 'tis A.I. ∀x∈ℝ:x²≥0 ¿¡ 「」".split(),
    *"<s>x [INST] <unk> </s <|im_end |im_end|> <|IM_END|> <0x0A> ▁ ▁▁a Ġ Ċ Âł 。、 ！？".split(),
    *("rock 'n' roll", "< |im_end| >", "<|im_end |>"),
)
EMOJI = (
    *"😀 👍🏽 🇫🇷🇯🇵 ☺ 🫠🫶 🦊🌲 a😀b 😀😀😀😀😀😀😀😀😀😀😀😀".split(),
    *("❤\ufe0f", "1\ufe0f\u20e3", "👨\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈", "🤦🏼\u200d♂\ufe0f", "🧑🏿\u200d🚀"),
    *("\u200d", "\u200c"),
)
CODE = (
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    'for (int i = 0; i < 10; ++i) {\n\tprintf("%d\\n", i);\n}',
    "SELECT * FROM users WHERE name LIKE '%o''brien%' AND id IN (1,2,3);",
    '{"role": "user", "content": "a\\nb", "n": [1, 2.5e3, null, true]}',
    '<div class="a b"><p>x &amp; y</p><!-- c --></div>',
    'fn main() { let v: Vec<&\'static str> = vec![]; println!("{:?}", v); }',
    "$ ls -la | grep -v '^d' > out.txt 2>&1 && echo $?",
    "\\begin{align} e^{i\\pi} + 1 &= 0 \\\\ \\frac{a}{b} \\end{align}",
    "| a | b |\n|---|:-:|\n| 1 | `2` |\n\n```python\nprint('hi')\n```\n",
    "https://example.com/a/b?c=d&e=%20f#g",
    "if x:\n        y()\n\telse:\n  z()\n\n\n\nend",
    "camelCaseIdentifier snake_case_identifier SCREAMING_CASE kebab-case HTTPServer2",
    "-----BEGIN KEY-----\nMIIBVgIBADANBgkqhkiG9w0BAQEFAASCAUAwggE8\n-----END KEY-----",
)
ODD = (
    *("\x00", "a\x00b", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "\u0085", "\ufeff", "\ufeffa", "\ufffd"),
    *("\ufffe", "\uffff", "\ue000", "\uf8ff", "\U000f0000", "\U0010ffff", "\u202eabc\u202c", "\u2028", "\u2029"),
    *("\u0301", "\u00ad", "\u061c", "t" * 300, "ab" * 150),
    *"Ã© â€™ 𝄞 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﬁﬂ ǅ ß ŉ ﷺ 𝟘 𒀀 🜁".split(),
)
CHARACTERS = (
    *((0x20, 0x7E), (0xA1, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A), (0x904, 0x939)),
    *((0xE01, 0xE2E), (0x2010, 0x2027), (0x2190, 0x21FF), (0x3041, 0x30FF), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3)),
    *((0x1F300, 0x1F5FF), (0x1F600, 0x1F64F)),
)
"""Ranges that random text is drawn from; unassigned code points in them are left out."""


def parity_strings(specials: Iterable[str], chats: Sequence[str]) -> tuple[str, ...]:
    """At least `MINIMUM` different strings, the same ones for the same arguments.

    Args:
        specials: every special token; each comes alone, doubled, inside words, between blanks and at line ends.
        chats: rendered conversations, which come whole.

    All are in Unicode's composed form (NFC): llama.cpp never normalises, so no file can make it agree with a tokenizer
    that does; `decomposed_strings` asks about those.
    """
    plain = (*LANGUAGES, *DIGITS, *BLANKS, *PUNCTUATION, *EMOJI, *CODE, *ODD)
    specials = tuple(specials)
    fixed = ["", *plain, *_single_characters(), *_around(specials), *_positions(plain), *chats]
    texts = dict.fromkeys(_composed(text) for text in fixed)
    mixes = _mixes(plain, specials, random.Random(SEED))
    enough = max(MINIMUM, len(texts) + MINIMUM // 4)
    while len(texts) < enough:
        texts[_composed(next(mixes))] = None
    return tuple(texts)


def decomposed_strings() -> tuple[str, ...]:
    """The texts whose decomposed form (NFD) is another sequence of characters, in that form."""
    return tuple(text for original in LANGUAGES if (text := unicodedata.normalize("NFD", original)) != original)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _single_characters() -> Iterator[str]:
    """ASCII whole: every byte-level piece and its neighbourhood of a letter."""
    for code in range(0x21, 0x7F):
        yield chr(code)
        yield f"a{chr(code)}a"


def _around(specials: Iterable[str]) -> Iterator[str]:
    for text in specials:
        yield from (
            text,
            text * 2,
            f"a{text}b",
            f" {text} ",
            f"\n{text}\n",
            f"{text}user\n",
            f"1{text} 2",
            f"é{text}日",
        )


def _positions(texts: Iterable[str]) -> Iterator[str]:
    """Each text after and before what changes how its edge is cut."""
    for text, (before, after) in product(texts, ((" ", ""), ("\n", "\n"), ("x", "x"), ("", " "))):
        yield before + text + after


def _mixes(plain: Sequence[str], specials: Sequence[str], draw: random.Random) -> Iterator[str]:
    """Endless mixes of known texts, random characters and tags."""
    joints = ("", "", " ", "  ", "\n", "\n\n", "\t")
    while True:
        pieces = []
        for _ in range(draw.randint(2, 6)):
            kind = draw.random()
            if kind < 0.5:
                pieces.append(draw.choice(plain))
            elif kind < 0.9 or not specials:
                pieces.append(_random_characters(draw))
            else:
                pieces.append(draw.choice(specials))
            pieces.append(draw.choice(joints))
        yield "".join(pieces)


def _random_characters(draw: random.Random) -> str:
    first, last = draw.choice(CHARACTERS)
    letters = (chr(draw.randint(first, last)) for _ in range(draw.randint(1, 12)))
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Cn")
