"""The prompts: what a question and an answer must be, the articles, and what was wrong with the previous reply."""

import json

CHARS_PER_PAIR = 120  # characters of an article for each pair that is asked for
MAX_QUOTED_REPLY_CHARS = 3000  # of the previous reply in the prompt of a retry
MAX_REASONS = 12  # listed in the prompt of a retry

SYSTEM = """你是中文问答数据的编写者。用户给出百科文章，你根据文章编写问答对，用来训练一个小型问答模型。要求：
1. 答案只能来自文章，尽量用文章的原话；不要加入文章没有的知识，数字、年份和名称必须与文章一致。
2. 每个问题问不同的内容，不要把同一个问题换个说法再问。
3. 每个问题单独拿出来也能看懂：写明问的是谁或什么，不用“他”“它”“该”“其”“此”“这部”“本文”“文中”“作者”等词指代。
4. 问题用{question}个字符以内（标点也算）的一句话写成；答案是1到{answer}个字符的完整通顺的话。
5. 内容多的文章多写，内容少的文章少写：每篇至少{low}对，至多{high}对。
6. 使用文章所用的字体（简体或繁体），只写普通文字，不用Markdown、HTML或“##”。
7. 只输出JSON，不要解释。格式如下：
{example}"""

EXAMPLE = [
    {"question": "虚构的青石桥建于哪一年？", "answer": "青石桥建于1204年。"},
    {"question": "青石桥有几个桥孔？", "answer": "青石桥有五个桥孔，中间的一个最高。"},
]
EXAMPLE_2 = [{"question": "虚构的木生茶产自哪里？", "answer": "木生茶产自白水镇。"}]
JSON_SEPARATORS = (",", ":")


def system_message(settings, several):
    """The text of the system message. several: whether the user's message contains several articles."""
    example = [{"article": 1, "pairs": EXAMPLE}, {"article": 2, "pairs": EXAMPLE_2}] if several else EXAMPLE
    text = SYSTEM.format(
        question=settings.longest_question,
        answer=settings.longest_answer,
        low=settings.min_pairs,
        high=settings.max_pairs,
        example=json.dumps(example, ensure_ascii=False, separators=JSON_SEPARATORS),
    )
    return f"{text}\n每篇文章有编号，输出中的article是它的编号，每篇都要写。" if several else text


def wanted_pairs(text, settings):
    """Number of pairs to ask for: one for every CHARS_PER_PAIR characters, from min_pairs + 1 to max_pairs.

    The one above min_pairs allows a pair to break a rule without failing the whole reply.
    """
    return min(settings.max_pairs, max(settings.min_pairs + 1, len(text) // CHARS_PER_PAIR))


def article_message(articles, settings):
    """The text of the user's message: articles [(title, text)] and the number of pairs wanted for each."""
    if len(articles) == 1:
        title, text = articles[0]
        return f"标题：{title or '（无）'}\n\n文章：\n{text}\n\n请写{wanted_pairs(text, settings)}对问答。"
    parts = [
        f"【文章{number}】标题：{title or '（无）'}（请写{wanted_pairs(text, settings)}对问答）\n{text}"
        for number, (title, text) in enumerate(articles, start=1)
    ]
    return "\n\n".join(parts)


def messages_for(articles, settings, previous="", reasons=()):
    """The chat messages of a request about articles [(title, text)].

    previous, reasons: in a retry, the previous reply and why it was refused.
    """
    chat = [
        {"role": "system", "content": system_message(settings, len(articles) > 1)},
        {"role": "user", "content": article_message(articles, settings)},
    ]
    if reasons:
        unique = list(dict.fromkeys(reasons))
        more = f"\n（另有{len(unique) - MAX_REASONS}处问题）" if len(unique) > MAX_REASONS else ""
        listed = "\n".join(f"- {reason}" for reason in unique[:MAX_REASONS])
        chat += [
            {"role": "assistant", "content": previous[:MAX_QUOTED_REPLY_CHARS] or "（空）"},
            {
                "role": "user",
                "content": f"这份回复不合要求：\n{listed}{more}\n请改正，重新输出这篇文章的全部问答对，只输出JSON。",
            },
        ]
    return chat


def reply_text(pairs):
    """Pairs as the text of a reply about a single article."""
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    return json.dumps(rows, ensure_ascii=False, separators=JSON_SEPARATORS)
