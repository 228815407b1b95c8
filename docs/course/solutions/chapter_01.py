"""Solutions of the exercises of chapter 1, and the checks of the reader's answers."""

import codecs

from minigpt.tokenizer import load_tokenizer


def exercise_1():
    return len(load_tokenizer("gpt2").encode("黄河发源于青海省。"))


def exercise_2(chunks):
    # An incremental decoder keeps the bytes of a character that is not complete yet.
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(chunk) for chunk in chunks]


def exercise_3():
    # GPT-2's vocabulary was made from English: it has the frequent English words, each with the space before it.
    return "The river flows through the northern mountains."


def check_1(exercise):
    answer, right = exercise(), exercise_1()
    if answer == right:
        return None
    if answer == right - 1 or answer == len(load_tokenizer("gpt2").encode("黄河发源于青海省")):
        return "Did you count the full stop's token, too?", "句号的 token 也数了吗？"
    return (
        "Run 01_tokens.py with this sentence, and look at the first line that it prints.",
        "用 01_tokens.py 跑这句话，看它打印的第一行。",
    )


def check_2(exercise):
    gpt2 = load_tokenizer("gpt2")
    streams = [[gpt2.token_bytes(i) for i in gpt2.encode(text)] for text in ("中国的河流", "River 河 😀!", "龘龘")]
    streams.append([b"\xe4\xb8\xad\xe5", b"\x9b", b"\xbd\xe7\x9a\x84"])  # tokens may end anywhere in a character
    for chunks in streams:
        answer = exercise(list(chunks))
        if not isinstance(answer, list) or len(answer) != len(chunks):
            return (
                f"Return a list (not a str or a tuple); for {len(chunks)} tokens it must have {len(chunks)} texts.",
                f"请返回列表（list，不是 str 或 tuple）；{len(chunks)} 个 token，列表里就要有 {len(chunks)} 项文字。",
            )
        if answer != exercise_2(chunks):
            return (
                f"For {chunks} you returned {answer}. Keep the bytes that make no whole character yet, and put the "
                "next token's bytes behind them. One token may have whole characters and the beginning of another.",
                f"对 {chunks}，你返回了 {answer}。把还不成整字的字节留着，接上下一个 token 的字节。"
                "一个 token 里可能既有完整的字，又有另一个字的开头。",
            )
    return None


def check_3(exercise):
    text = exercise()
    if not isinstance(text, str) or len(text) < 20:
        return "Return a text (str) of at least 20 characters.", "请返回一段至少 20 个字符的文字（str）。"
    ours, theirs = (len(load_tokenizer(name).encode(text)) for name in ("out/demo.tiktoken", "gpt2"))
    if ours > theirs:
        return None
    return (
        f"The demo's tokenizer makes {ours} tokens of it, GPT-2's {theirs}. From what texts was each vocabulary made?",
        f"演示的分词器切成 {ours} 个 token，GPT-2 的切成 {theirs} 个。这两个词表各是用什么文字做的？",
    )
