"""Byte-pair encoding of large amounts of text, compiled by numba; it gives tiktoken's ids, several times as fast.

A text is split into pieces as by `GPT2_PATTERN` or `QWEN2_PATTERN`. A piece is split into runs: between two characters
that stand side by side in no token. No merge crosses that border, so each run is encoded by itself. Runs are short, in
Chinese often one character, and few different ones make up most of a text: the ids of each are kept in a cache.
"""

import itertools

import numpy as np
import tiktoken
from numba import njit

SIGN, LETTER, NUMBER, SPACE, NEWLINE = range(5)  # kinds of characters; a sign is none of the others
# Above are planes without characters, and those for private use: a text that has one is left to tiktoken.
MAX_CODE = 0x40000
NO_TOKEN = 2**31 - 1  # more than any id
MAX_RUN_BYTES = 256  # merging takes quadratic time
MAX_KEY_BYTES = 15  # of a run in the cache: it and its length make up the key, of 16 bytes
CACHE_ROWS, ROW_IDS = 1 << 14, 5  # a row is a key of two numbers, how many ids it has, and the ids: 64 bytes
HASH_FACTORS = (-0x61C8864680B583EB, 0x2545F4914F6CDD1D)  # odd numbers whose products have well-mixed high bits


class CompiledEncoder:
    """Encodes as `tiktoken.Encoding` does with these ranks ({bytes: id}) and GPT-2's pattern or, is_qwen2, Qwen2's.

    is_exact: whether merges reach each token from its bytes. tiktoken finds others where they are a whole piece, this
    does not.
    """

    def __init__(self, ranks, is_qwen2):
        self.is_qwen2 = is_qwen2
        self.kinds = classify_characters()
        self.byte_ids = np.array([ranks[bytes([byte])] for byte in range(256)])
        self.merges = build_table(list_merges(ranks))
        # Characters side by side in a token: whole ones, and the bytes at the border where a token has only a part.
        pairs, self.joined_bytes = set(), np.zeros((256, 256), dtype=bool)
        for token in ranks:
            try:
                text = token.decode()
                pairs.update(itertools.pairwise(map(ord, text)))
            except UnicodeDecodeError:
                for left, right in itertools.pairwise(token):
                    self.joined_bytes[left, right] = True
        self.joined_characters = build_table(np.array([(*pair, 0) for pair in pairs], dtype=np.int64).reshape(-1, 3))
        self.may_join = np.zeros(MAX_CODE, dtype=bool)  # spares most searches in that table
        self.may_join[[left for left, _ in pairs if left < MAX_CODE]] = True
        self.cache = np.zeros((CACHE_ROWS, 3 + ROW_IDS), dtype=np.int64)
        data, lengths = np.frombuffer(b"".join(ranks), dtype=np.uint8), np.array(list(map(len, ranks)))
        self.is_exact = reach_tokens(data, lengths, lengths.max(), self.byte_ids, self.merges)

    def encode(self, text):
        """(n,) of int32: the ids of a text; None where it has characters or runs that are left to tiktoken."""
        try:
            codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.int32)
        except UnicodeEncodeError:  # half of a surrogate pair
            return None
        if codes.max(initial=0) >= MAX_CODE:
            return None
        ids = np.empty(4 * len(codes) + ROW_IDS, dtype=np.int32)
        tables = (self.byte_ids, self.merges, self.joined_bytes, self.joined_characters, self.may_join, self.cache)
        count = encode_codes(codes, self.kinds, self.is_qwen2, *tables, ids)
        return None if count < 0 else ids[:count]


def classify_characters():
    """(MAX_CODE,) the kind of each character, by tiktoken's regular expressions: Python may know another Unicode."""
    kinds = np.full(MAX_CODE, SIGN, dtype=np.uint8)
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, MAX_CODE)]))
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    for kind, pattern in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (SPACE, r"\s")):
        matcher = tiktoken.Encoding("matcher", pat_str=pattern, mergeable_ranks=single_bytes, special_tokens={})
        found = bytes(matcher.encode_ordinary(text)).decode()
        kinds[np.frombuffer(found.encode("utf-32-le"), dtype=np.int32)] = kind
    kinds[[ord("\r"), ord("\n")]] = NEWLINE
    return kinds


def list_merges(ranks):
    """(n, 3) of int64: (left id, right id, id) of every two tokens that make up a third."""
    return np.array(
        [
            (ranks[token[:i]], ranks[token[i:]], token_id)
            for token, token_id in ranks.items()
            for i in range(1, len(token))
            if token[:i] in ranks and token[i:] in ranks
        ],
        dtype=np.int64,
    ).reshape(-1, 3)


def build_table(entries):
    """The hash table of entries, (n, 3) of int64: left, right, and the number under this key."""
    table = np.full((2 << len(entries).bit_length(), 2), -1, dtype=np.int64)  # more than half of it stays free
    fill_table(table, entries)
    return table


# The compiled part. Hash tables are (2^k, 2) of int64, of a key and what it stands for, with open addressing.


@njit(cache=True)
def find_in_table(table, left, right):
    """The number under the key (left, right), of 31 bits each; NO_TOKEN where it is not in the table."""
    key = left << 32 | right
    place = (key * HASH_FACTORS[0]) >> 40 & (len(table) - 1)
    while table[place, 0] != key:
        if table[place, 0] < 0:
            return NO_TOKEN
        place = (place + 1) & (len(table) - 1)
    return table[place, 1]


@njit(cache=True)
def fill_table(table, entries):
    """Adds entries, (n, 3) of int64: left, right, and the number under this key."""
    for i in range(len(entries)):
        key = entries[i, 0] << 32 | entries[i, 1]
        place = (key * HASH_FACTORS[0]) >> 40 & (len(table) - 1)
        while table[place, 0] >= 0:
            place = (place + 1) & (len(table) - 1)
        table[place, 0], table[place, 1] = key, entries[i, 2]


@njit(cache=True)
def merge_ids(ids, n, ranks, merges):
    """Merges the first n of `ids` in place, lowest rank first; returns how many are left. ranks: room for n numbers."""
    for i in range(n - 1):
        ranks[i] = find_in_table(merges, ids[i], ids[i + 1])
    while n > 1:
        at = 0
        for i in range(1, n - 1):
            if ranks[i] < ranks[at]:
                at = i
        if ranks[at] == NO_TOKEN:
            break
        ids[at] = ranks[at]
        n -= 1
        for i in range(at + 1, n):
            ids[i], ranks[i - 1] = ids[i + 1], ranks[i]
        if at > 0:
            ranks[at - 1] = find_in_table(merges, ids[at - 1], ids[at])
        if at < n - 1:
            ranks[at] = find_in_table(merges, ids[at], ids[at + 1])
    return n


@njit(cache=True)
def reach_tokens(data, lengths, longest, byte_ids, merges):
    """Whether merges make one id of the bytes of each token; data: those of all tokens, one behind the other."""
    ids, ranks, start = np.empty(longest, dtype=np.int64), np.empty(longest, dtype=np.int64), 0
    for length in lengths:
        for i in range(length):
            ids[i] = byte_ids[data[start + i]]
        if merge_ids(ids, length, ranks, merges) > 1:
            return False
        start += length
    return True


@njit(cache=True)
def find_piece_end(codes, kinds, start, is_qwen2):
    """Where the piece that begins at `start` ends. The comments name the alternatives of the two patterns."""
    n, first = len(codes), codes[start]
    # '(?:[sdmt]|ll|ve|re), in Qwen2's also in capitals.
    if first == ord("'") and start + 1 < n:
        letter = codes[start + 1] | 32 if is_qwen2 and codes[start + 1] < 128 else codes[start + 1]
        if letter == ord("s") or letter == ord("d") or letter == ord("m") or letter == ord("t"):
            return start + 2
        if start + 2 < n:
            second = codes[start + 2] | 32 if is_qwen2 and codes[start + 2] < 128 else codes[start + 2]
            is_ll = letter == ord("l") and second == ord("l")
            if is_ll or (second == ord("e") and (letter == ord("v") or letter == ord("r"))):
                return start + 3
    # One sign before what follows: ` ?` in GPT-2's, in Qwen2's `[^\r\n\p{L}\p{N}]?` before letters, ` ?` before others.
    end = start
    if start + 1 < n:
        kind, next_kind = kinds[first], kinds[codes[start + 1]]
        if is_qwen2 and next_kind == LETTER:
            end += kind in (SIGN, SPACE)
        elif first == ord(" "):
            end += next_kind == SIGN or (next_kind < SPACE and not is_qwen2)
    kind = kinds[codes[end]]
    # \p{L}+, [^\s\p{L}\p{N}]+ and \p{N}+, in Qwen2's \p{N}.
    if kind < SPACE:
        end += 1
        while end < n and kinds[codes[end]] == kind and not (is_qwen2 and kind == NUMBER):
            end += 1
        while is_qwen2 and kind == SIGN and end < n and kinds[codes[end]] == NEWLINE:  # [\r\n]*
            end += 1
        return end
    # Spaces. In Qwen2's \s*[\r\n]+, which ends behind the last newline; \s+(?!\S), which leaves the last space to what
    # follows; \s+.
    newline_end = start
    while end < n and kinds[codes[end]] >= SPACE:
        end += 1
        if kinds[codes[end - 1]] == NEWLINE:
            newline_end = end
    if is_qwen2 and newline_end > start:
        return newline_end
    return end - 1 if start + 1 < end < n else end


@njit(cache=True)
def write_utf8(code):
    """(the bytes of a character in UTF-8 as one number, how many they are)"""
    last = 0x80 | code & 63
    if code < 0x80:
        return code, 1
    if code < 0x800:
        return (0xC0 | code >> 6) << 8 | last, 2
    middle = (0x80 | code >> 6 & 63) << 8 | last
    if code < 0x10000:
        return (0xE0 | code >> 12) << 16 | middle, 3
    return (0xF0 | code >> 18) << 24 | (0x80 | code >> 12 & 63) << 16 | middle, 4


@njit(cache=True)
def encode_codes(codes, kinds, is_qwen2, byte_ids, merges, joined_bytes, joined_characters, may_join, cache, ids):
    """Writes the ids of characters (n,) of int32 to `ids` (4n + ROW_IDS,); returns how many they are.

    Returns -1 where a run is too long.
    """
    run_ids, ranks = np.empty(MAX_RUN_BYTES, dtype=np.int64), np.empty(MAX_RUN_BYTES, dtype=np.int64)
    zero = np.int64(0)  # for a plain 0 numba compiles the called functions once more
    start = count = piece_end = zero
    while start < len(codes):
        if start == piece_end:
            piece_end = find_piece_end(codes, kinds, start, is_qwen2)
        # A run: its end, its length, and its last 16 bytes as two numbers.
        low, n_bytes = write_utf8(np.int64(codes[start]))
        high, end = 0, start + 1
        while end < piece_end:
            character, length = write_utf8(np.int64(codes[end]))
            left, right = np.int64(codes[end - 1]), np.int64(codes[end])
            if not joined_bytes[low & 255, character >> 8 * (length - 1)] and not (
                may_join[left] and find_in_table(joined_characters, left, right) != NO_TOKEN
            ):
                break
            high = high << 8 * length | low >> (64 - 8 * length) & ((1 << 8 * length) - 1)
            low = low << 8 * length | character
            n_bytes += length
            end += 1
        if n_bytes > MAX_RUN_BYTES:
            return -1
        # Its ids, from the cache or by merging. (A slice such as cache[row] would take a third of all time.)
        high |= n_bytes << 56
        row = (low * HASH_FACTORS[0] ^ high * HASH_FACTORS[1]) >> 40 & (CACHE_ROWS - 1)
        if n_bytes <= MAX_KEY_BYTES and cache[row, 0] == low and cache[row, 1] == high:
            for i in range(ROW_IDS):  # always all, which is faster than a loop of row[2]
                ids[count + i] = cache[row, 3 + i]
            count += cache[row, 2]
        else:
            n = zero
            for i in range(start, end):
                character, length = write_utf8(np.int64(codes[i]))
                for shift in range(8 * (length - 1), -1, -8):
                    run_ids[n] = byte_ids[character >> shift & 255]
                    n += 1
            n = merge_ids(run_ids, n, ranks, merges)
            for i in range(n):
                ids[count + i] = run_ids[i]
            count += n
            if n_bytes <= MAX_KEY_BYTES and n <= ROW_IDS:
                cache[row, 0], cache[row, 1], cache[row, 2] = low, high, n
                for i in range(n):
                    cache[row, 3 + i] = run_ids[i]
        start = end
    return count
