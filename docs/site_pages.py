"""Changes that a page of docs/ needs on the site that mkdocs builds (mkdocs.yml)."""

import re

FENCE = re.compile(r"(^[ \t]*```.*?^[ \t]*```[ \t]*$)", re.DOTALL | re.MULTILINE)
# The link to the page's other language, which the site's header has.
LANGUAGE_LINK = re.compile(r"^\[(中文|English)\]\([^)]*\)\n", re.MULTILINE)
# A line break between Chinese characters would be shown as a space.
CHINESE_BREAK = re.compile(
    r"(?<=[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef])\n(?=[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef])"
)


def on_page_markdown(markdown, **_):
    """A page's Markdown without its language link, and with Chinese paragraphs of one line. Code stays."""
    parts = FENCE.split(LANGUAGE_LINK.sub("", markdown, count=1))
    return "".join(part if i % 2 else CHINESE_BREAK.sub("", part) for i, part in enumerate(parts))
