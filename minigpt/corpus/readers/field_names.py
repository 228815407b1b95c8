"""Names of fields, by which a table's header and an object that is a row are recognized."""

# What a row, or an object that holds a file's rows, tells beside its texts.
ABOUT_NAMES = {
    "id", "title", "abstract", "summary", "desc", "description", "subject", "url", "source", "label", "category",
    "kind", "type", "lang", "date", "score", "rating", "标题", "题目", "摘要", "来源", "链接", "分类", "类别", "标签",
    "主题", "描述", "编号", "序号",
}  # fmt: skip
# What rows of articles and of questions hold.
TEXT_NAMES = {
    "text", "content", "body", "article", "passage", "context", "document", "paragraph", "sentence", "sentence1",
    "sentence2", "text_a", "text_b", "review", "question", "answer", "prompt", "completion", "response", "query",
    "reply", "instruction", "input", "output", "target", "reference", "history", "system", "human", "user",
    "assistant", "bot", "gpt", "chosen", "rejected", "q", "a", "src", "tgt", "source_text", "target_text",
    "reasoning_content", "messages", "conversations", "conversation", "dialog", "dialogue", "turns", "pairs", "正文",
    "内容", "文本", "评论", "问题", "答案", "回答", "回复", "提问", "问", "答", "提示", "指令", "输入", "输出", "上文",
    "下文", "用户", "助手",
}  # fmt: skip
# A table whose first record has none of these may have no header.
FIELD_NAMES = ABOUT_NAMES | TEXT_NAMES
# Lists of objects or strings that are one row's own, not the rows of a file.
ROW_LIST_NAMES = {
    "messages", "conversations", "conversation", "dialog", "dialogue", "turns", "history", "pairs", "paragraphs", "qas",
    "chat", "sections",
}  # fmt: skip


def count_field_names(names, known=FIELD_NAMES):
    """How many of the names, in any case and with spaces around them, are known as a field's."""
    return sum(isinstance(name, str) and name.strip().lower() in known for name in names)
