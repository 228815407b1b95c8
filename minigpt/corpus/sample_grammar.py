"""Minimal pairs of the embedded corpus, which data/make_sample.py makes from its fact tables.

A pair is a right and a wrong sentence that differ in one place: a word is exchanged for a wrong one of the same length,
or two neighbours are swapped. So both have the same characters in number, and length decides nothing. The sentences are
about the corpus's subjects, in frames that no article has.
"""

import random
import re

from minigpt.common.errors import UserError
from minigpt.corpus.sample_tasks import draw, shuffled

PAIRS_PER_PARADIGM = 20
FRAME_CHOICE = re.compile(r"\[([^\]]*)\]")

# {phenomenon: {paradigm: (field, frame, {column: the values that it may have})}}. In a frame [right|wrong|wrong…] is
# the place where the sentences differ, and {column} is a value of the field's fact table.
FRAMES = {
    "classifier": {
        "river": ("rivers", "{continent}有一[条|座|颗|位]河流，叫作{name}。"),
        "city": ("cities", "{province}有一[座|条|颗|位]城市，叫作{name}。"),
        "body": ("planets_moons", "太阳系里有一[颗|条|位|座]{kind}，叫作{name}。"),
        "writer": ("writers", "{dynasty}有一[位|条|座|颗]{kind}，名叫{name}。"),
        "element": ("elements", "{period}里有一[种|位|座|条]元素，叫作{name}。"),
        "animal": ("animals", "{continent}有一[种|位|座|颗]{diet}动物，叫作{name}。"),
    },
    "word_order": {
        "verb_object": ("animals", "书上说，{name}[属于{order}|{order}属于]，英文叫{english}。"),
        "preposition": ("rivers", "{name}[从{source}|{source}从]流出，最后汇入{mouth}。"),
        "locative": ("cities", "不少人[在{province}|{province}在]旅行时去过{name}。"),
        "possessor": ("countries", "地图上画着[{name}的首都|首都的{name}]{capital}。"),
        "subject_verb": ("instruments", "今天，[人们用|用人们]{material}制作{name}。"),
    },
    "de": {
        "place": ("countries", "很多人知道{name}[的货币|货币的]是{currency}。"),
        "homophone": ("rivers", "大家都想看看{name}[的|得|地]源头{source}。"),
        "relative_clause": ("dynasties", "{founder}[建立的|的建立]王朝叫作{name}。"),
        "adjective": ("provinces", "{name}有一座很高[的|得|地]山峰，叫作{peak}。"),
    },
    "shi_de": {
        "agent": ("planets_moons", "这颗{kind}叫{name}，是由{discoverer}发现[的|了|着]。"),
        "time": ("dynasties", "{name}这个王朝是在{start}建立[的|着]。"),
        "manner": ("instruments", "{name}这种乐器是用{play}的方式演奏[的|了|着]。"),
    },
    "ba_bei": {
        "ba": ("elements", "很多书都[把|被]{name}列入{category}。"),
        "bei": ("planets_moons", "{name}[被|把]{discoverer}发现以后，人们才知道有这颗{kind}。"),
        "ba_name": ("provinces", "人们常[把|被]{name}简写成{abbr}。"),
        "ba_place": ("countries", "大家都知道{name}[把首都|首都把]设在了{capital}。"),
    },
    "aspect": {
        "le_place": ("dynasties", "后来，{founder}[建立了|了建立]{name}。"),
        "le_zhe": ("planets_moons", "{discoverer}在{discovery_year}年发现[了|着]{name}。"),
        "guo_zhe": ("countries", "我的老师去[过|着]{name}的首都{capital}。"),
        "le_end": ("dynasties", "到了{end}，{name}已经灭亡[了|着]。"),
    },
    "negation": {
        "have": ("countries", "{name}是内陆国，[没|不]有海港。", {"kind": {"内陆国"}}),
        "be": ("countries", "{name}[不|没]是岛国，而是{kind}。", {"kind": {"沿海国", "内陆国"}}),
        "belong": ("animals", "{name}[不|没]属于昆虫，而属于{class}。", {"class": {"哺乳纲", "鸟纲"}}),
        "not_yet": ("dynasties", "{start}以前，还[没|不]有{name}。"),
    },
    "conjunction": {
        "yinwei": ("countries", "地理书上说，[因为|虽然]{name}{coast}，所以它是{kind}。"),
        "ruguo": ("elements", "老师说，[如果|虽然]要找{name}，那就看看{period}。"),
        "budan": ("writers", "{name}不但是{dynasty}的{kind}，[而且|所以]写了{work}。"),
        "ranhou": ("solar_terms", "先是{prev}，[然后|因为]是{name}。"),
    },
    "numeral": {
        "ordinal": ("elements", "周期表里的[第{number}|{number}第]号元素叫作{name}。"),
        "count": ("instruments", "这件乐器是{name}，一共有[{num}{unit}|{unit}{num}]。"),
        "before_noun": ("solar_terms", "{name}是[{order}节气|节气{order}]，在{month}。"),
    },
    "adverb": {
        "zui": ("provinces", "{name}[最高|高最]的山峰叫作{peak}。"),
        "geng": ("provinces", "{peak}比{name}的其他山峰[更高|高更]。"),
        "dou": ("cities", "来到{name}的人[都爱|爱都]看{sight}。"),
        "ye": ("countries", "{name}[也属于|属于也]{continent}，首都是{capital}。"),
    },
}


def grammar_rows(phenomenon, fields):
    """Yields the pairs {"good", "bad", "phenomenon", "paradigm"} of a phenomenon of FRAMES.

    fields: {field: [subject]}; a subject has a name and `fill_in`, as `Subject` in data/make_sample.py.
    """
    for paradigm, (field, frame, *only) in FRAMES[phenomenon].items():
        rng = random.Random(f"grammar/{phenomenon}/{paradigm}")
        pairs = {}
        for subject in shuffled(fields[field], rng):
            allowed = only[0] if only else {}
            if any(subject.row[column] not in values for column, values in allowed.items()):
                continue
            right, *wrong = FRAME_CHOICE.search(frame)[1].split("|")
            sentences = [FRAME_CHOICE.sub(lambda _, part=part: part, frame) for part in (right, draw(wrong, rng))]
            filled = subject.fill_in(sentences)
            if len(filled) == 2:  # no column is empty
                pairs[filled[0]] = filled[1]
            if len(pairs) == PAIRS_PER_PARADIGM:
                break
        if len(pairs) < PAIRS_PER_PARADIGM:
            raise UserError(f"{field}: only {len(pairs)} pairs of {paradigm}")
        for good, bad in pairs.items():
            if len(good) != len(bad) or good == bad:
                raise UserError(f"{paradigm}: the sentences of a pair must differ, and be of one length: {good} {bad}")
            yield {"good": good, "bad": bad, "phenomenon": phenomenon, "paradigm": paradigm}
