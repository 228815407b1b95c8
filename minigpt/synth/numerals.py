"""Values of the numbers in Chinese text: 1,200, １２００ and 一千二百 are equal, and so are 1.5万 and 15000."""

import re
import unicodedata

DIGITS = {c: i for i, c in enumerate("〇一二三四五六七八九")} | {"零": 0, "两": 2, "兩": 2}
SMALL_UNITS = {"十": 10, "百": 100, "千": 1000}
MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
# Units after which a last digit abbreviates: 一百五 is 150, but 十五 is 15.
ABBREVIATING_UNITS = {unit: value for unit, value in {**SMALL_UNITS, **MYRIADS}.items() if unit != "十"}
MAX_NUMERAL_CHARS = 20
ARABIC_NUMBER = re.compile(rf"\d+(?:,\d{{3}})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?(?:\s?[{''.join(MYRIADS)}]+)?")
CHINESE_NUMERAL = re.compile(f"[{''.join([*DIGITS, *SMALL_UNITS, *MYRIADS])}]+")


def normalize_digits(text):
    """The text in NFKC, in which full-width digits become ASCII digits."""
    return unicodedata.normalize("NFKC", text)


def arabic_numbers(text):
    """Set of the values (float) of the numbers written in digits."""
    values = set()
    for match in ARABIC_NUMBER.finditer(normalize_digits(text)):
        digits = match[0].replace(",", "").rstrip("".join(MYRIADS) + " ")
        value = float(digits[:MAX_NUMERAL_CHARS])
        for unit in match[0]:
            value *= MYRIADS.get(unit, 1)
        values.add(value)
    return values


def chinese_numbers(text):
    """{numeral: value} of the numerals in Chinese characters, without words that look like one (万一, 三三)."""
    found = {
        numeral: value_of(numeral) for numeral in CHINESE_NUMERAL.findall(text) if len(numeral) <= MAX_NUMERAL_CHARS
    }
    return {numeral: value for numeral, value in found.items() if value is not None}


def value_of(numeral):
    """The value of a Chinese numeral such as 二〇〇八 or 二千零八, or None if it is not one."""
    if all(c in DIGITS for c in numeral):
        # Four digits in a row are a year; two or three are usually something else: 三四个, 三三两两.
        digits = "".join(str(DIGITS[c]) for c in numeral)
        return float(digits) if len(numeral) == 1 or (len(numeral) == 4 and not set("两兩") & set(numeral)) else None
    # parts: values of the sections that ended in 万 or 亿; section: sum of the 千, 百 and 十 since the last of them.
    parts, section, digit = [], 0, None
    last_unit = 10**5
    for c in numeral:
        if c in DIGITS:
            if digit:
                return None
            digit = DIGITS[c]
        elif c in SMALL_UNITS:
            if SMALL_UNITS[c] >= last_unit or (digit == 0 and section == 0 and not parts):
                return None
            last_unit = SMALL_UNITS[c]
            section += (1 if digit is None or digit == 0 else digit) * last_unit
            digit = None
        else:
            count = section + (digit or 0)
            if not count:
                if digit is not None or not parts:
                    return None
                count = parts.pop()  # 万亿: a unit directly after a unit multiplies it
            # Parts must decrease. A part smaller than the one after it is multiplied by that one's unit as well:
            # 一万二千亿 is 12,000 times 亿, but 一亿二千万 is 亿 plus 2,000 times 万.
            while parts and parts[-1] <= count * MYRIADS[c]:
                count += parts.pop()
            parts.append(count * MYRIADS[c])
            section, digit, last_unit = 0, None, 10**5
    if digit and len(numeral) > 1 and (unit := ABBREVIATING_UNITS.get(numeral[-2])):
        digit *= unit // 10  # 三千五 abbreviates 三千五百; 3005 is 三千零五
    return float(sum(parts) + section + (digit or 0))


def unknown_numbers(text, known, body):
    """Sorted numbers of a text, as strings, that are neither among the values `known` nor written in `body`.

    Numerals of one Chinese character are ignored: 一 occurs in 一种, 三 in 三国.
    """
    missing = {f"{value:g}" if value < 1e6 else f"{value:.0f}" for value in arabic_numbers(text) - known}
    for numeral, value in chinese_numbers(text).items():
        if len(numeral) > 1 and numeral not in body and value not in known:
            missing.add(numeral)
    return sorted(missing)


def known_numbers(body):
    """Set of the values of all numbers of a text, in digits or in Chinese characters."""
    return arabic_numbers(body) | set(chinese_numbers(body).values())


def without_numbers(text):
    """The text with each number replaced by a space."""
    return CHINESE_NUMERAL.sub(" ", ARABIC_NUMBER.sub(" ", normalize_digits(text)))
