"""What a question is about: whether it names something of its article, or leans on a pronoun that nothing explains."""

import re
import unicodedata

# Words of questions, and words so general that sharing them with an article names nothing of it.
QUESTION_WORDS = """
什么时候 什么地方 什么样 什么 为什么 为何 何时 何地 何处 何人 何种 何事 何物 何年 何月
何日 哪里 哪儿 哪些 哪个 哪位 哪年 哪一年 哪种 哪座 哪部 哪国 哪家 哪项 哪几 多少 多大
多长 多高 多久 多远 多重 多深 多宽 如何 怎样 怎么样 怎么 怎 几个 几种 几年 几月 几岁
几次 几座 几条 几 谁 是否 有没有 是不是 能否 吗 呢 请问 请 简述 介绍 说明 关于 根据
按照 其中 其他 此外 除此之外 是 有 在 于 的 了 和 与 及 由 被 把 为 以 从 到 对 中
里 上 下 个 之 叫 做 叫做 叫作 名叫 称为 属于 位于 主要 作用 特点 特征 特色 意义 含义
意思 定义 原因 目的 结果 影响 内容 方面 方式 方法 过程 情况 问题 类型 种类 性质 功能
用途 优点 缺点 时间 时候 日期 年份 年代 时期 地点 地方 地区 位置 名字 名称 全名 全称
简称 别名 别称 又名 又称 本名 原名 英文名 中文名 外号 数量 数目 大小 长度 高度 面积 人口
身份 职业 关系 成员 组成 部分 包括 包含 代表 著名 最大 最高 最长 最早 第一 一个 一种
一些 人物 主角 主人公 作者 作品 导演 演员 故事 小说 电影 文章 短文 本文 公司 国家 城市
事件 发生 出生 去世 创立 成立 建立 开始 结束 出版 发行 使用 负责 担任 获得 进行 认为
可以 需要 具有 存在 出现 成为 一般 通常 曾经 曾 最终 目前 现在 当时 后来 之前 之后 以前
以后 期间
"""
GENERAL = re.compile("|".join(sorted(QUESTION_WORDS.split(), key=len, reverse=True)))
HAN_RUN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
NAME_LIKE = re.compile(r"[A-Za-zÀ-ɏͰ-ϿЀ-ӿぁ-ヿ가-힣]{2,}|[A-Za-z]+\d+|\d{2,}")
QUOTED = re.compile(r"《[^《》]+》|“[^“”]+”|「[^「」]+」|『[^『』]+』|\"[^\"]+\"|〈[^〈〉]+〉")
TITLE_NOTE = re.compile(r"\s*[（(][^（）()]*[）)]$")  # as in 水星 (行星)
NAME = "〇"  # stands for a title or a quoted name

# A pronoun stands alone: what follows or goes before must not make another word of it.
PRONOUNS = re.compile(
    r"(?<![其吉维利排耳尼斯无])他(?![汀信国乡杀律克命拉卡林加])|她|牠|祂|(?<!其)它"
    r"|(?<![耳尤极与何名如突米索阿巴])其(?![他它中实余次顿])"
    r"|(?<![应活理本不只合早])该(?![隐亚如怎去当有是由不吃用拉])"
    r"|(?<![因如从彼由至就为对据在])此(?![外刻起])|(?<=[对在由为])此(?=[人书片剧文物地事部种次])"
    r"|这(?=[部位个种些座条本首篇款支场次名家类片届里是时样项处段张件只套架台辆对组批间幅枚颗群国])"
    r"|(?<!刹)那(?=[部位个种些座条本首篇款支场里是时样项段张件])"
    r"|(?:^|(?<=[，。、：根据在从按照于对由]))(?:本(?=[文书片剧作篇曲校市县站段])|文中|文章|短文|原文|上文|下文|上述|前述|材料|段落)"
    r"|^(?:我们|你们|咱们|我(?!国)|你|您|作者|笔者|主角|主人公|男主角|女主角)"
)


def plain(text):
    """A text in which only letters and digits count: NFKC, lower case, nothing else."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def bigrams(text):
    """Set of the pairs of neighbouring characters of a text; of a single character, itself."""
    return {text[i : i + 2] for i in range(max(1, len(text) - 1))} if text else set()


def masked(question, title):
    """The question with its quoted names, and the article's title, as a `NAME` each."""
    question = QUOTED.sub(NAME, question)
    for name in {title, TITLE_NOTE.sub("", title)}:
        if name:
            question = question.replace(name, NAME)
    return question


def shares_name(text, title, body, run=2):
    """Whether a text names something: two characters of the title, or `run` in a row of the body, or a name of it."""
    if NAME in text:
        return True
    rest = GENERAL.sub(" ", text)
    title_pairs = {pair for part in HAN_RUN.findall(title) for pair in bigrams(part)}
    for part in HAN_RUN.findall(rest):
        if title_pairs & bigrams(part) or any(part[i : i + run] in body for i in range(len(part) - run + 1)):
            return True
    known = f"{title}\n{body}".casefold()
    return any(name.casefold() in known for name in NAME_LIKE.findall(rest))


def pronoun_of(question, title, body):
    """The pronoun that a question leans on, or "". One behind a name (of three characters, or the title's) is none."""
    text = masked(question, title)
    for match in PRONOUNS.finditer(text):
        if not shares_name(text[: match.start()], title, body, run=3):
            return text[match.start() : match.end() + 1]
    return ""


def names_subject(question, title, body):
    """Whether a question names what it asks about, in a way that its article knows."""
    return shares_name(masked(question, title), title, body)
