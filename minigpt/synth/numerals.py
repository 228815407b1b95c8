"""Numbers in Chinese text, by value: 1,200, １２００ and 一千二百 are the same; 1.5万 and 15000 too."""

import re
import unicodedata

DIGITS = {c: i for i, c in enumerate("〇一二三四五六七八九")} | {"零": 0, "两": 2, "兩": 2}
UNITS = {"十": 10, "百": 100, "千": 1000}
MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
SHORT = {unit: value for unit, value in {**UNITS, **MYRIADS}.items() if unit != "十"}  # 十五 is 15, 一百五 is 150
LONGEST = 20  # characters of a numeral
ARABIC = re.compile(rf"\d+(?:,\d{{3}})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?(?:\s?[{''.join(MYRIADS)}]+)?")
CHINESE = re.compile(f"[{''.join([*DIGITS, *UNITS, *MYRIADS])}]+")


def normal(text):
    """NFKC, so that full-width digits are plain."""
    return unicodedata.normalize("NFKC", text)


def arabic_numbers(text):
    """Values (float) of the numbers that are written in digits."""
    values = set()
    for match in ARABIC.finditer(normal(text)):
        digits = match[0].replace(",", "").rstrip("".join(MYRIADS) + " ")
        value = float(digits[:LONGEST])
        for unit in match[0]:
            value *= MYRIADS.get(unit, 1)
        values.add(value)
    return values


def chinese_numbers(text):
    """{numeral as written: value} of the numerals in characters, but for what only looks like one (万一, 三三)."""
    found = {numeral: value_of(numeral) for numeral in CHINESE.findall(text) if len(numeral) <= LONGEST}
    return {numeral: value for numeral, value in found.items() if value is not None}


def value_of(numeral):
    """The value of a Chinese numeral, as 二〇〇八 or 二千零八 have it, or None."""
    if all(c in DIGITS for c in numeral):
        # Some digits in a row are a year; two or three are more often 三四个, 三三两两.
        digits = "".join(str(DIGITS[c]) for c in numeral)
        return float(digits) if len(numeral) == 1 or (len(numeral) == 4 and not set("两兩") & set(numeral)) else None
    # parts: what the 万 and 亿 read so far have given; section: the sum of the 千, 百 and 十 since.
    parts, section, digit = [], 0, None
    last_unit = 10**5
    for c in numeral:
        if c in DIGITS:
            if digit:
                return None
            digit = DIGITS[c]
        elif c in UNITS:
            if UNITS[c] >= last_unit or (digit == 0 and section == 0 and not parts):
                return None
            last_unit = UNITS[c]
            section += (1 if digit is None or digit == 0 else digit) * last_unit
            digit = None
        else:
            count = section + (digit or 0)
            if not count:
                if digit is not None or not parts:
                    return None
                count = parts.pop()  # 万亿: a unit right behind a unit multiplies it
            # The parts of a numeral get smaller and smaller; what is smaller than a part after it is counted by that
            # part's unit too: 一万二千亿 is 12,000 times 亿, but 一亿二千万 is 亿 and 2,000 times 万.
            while parts and parts[-1] <= count * MYRIADS[c]:
                count += parts.pop()
            parts.append(count * MYRIADS[c])
            section, digit, last_unit = 0, None, 10**5
    if digit and len(numeral) > 1 and (unit := SHORT.get(numeral[-2])):
        digit *= unit // 10  # 三千五 is short for 三千五百; 三千零五 has a 零
    return float(sum(parts) + section + (digit or 0))


def unknown_numbers(text, known, body):
    """Numbers of a text, as a person reads them, that are not among the values `known` nor written in `body`.

    Of numerals in characters only those of two and more are looked at: 一 is in 一种, 三 in 三国.
    """
    missing = {f"{value:g}" if value < 1e6 else f"{value:.0f}" for value in arabic_numbers(text) - known}
    for numeral, value in chinese_numbers(text).items():
        if len(numeral) > 1 and numeral not in body and value not in known:
            missing.add(numeral)
    return sorted(missing)


def known_numbers(body):
    """Values of all numbers of a text, however written."""
    return arabic_numbers(body) | set(chinese_numbers(body).values())


def without_numbers(text):
    """A text with a space in the place of each number."""
    return CHINESE.sub(" ", ARABIC.sub(" ", normal(text)))
