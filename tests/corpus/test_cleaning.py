"""The cleaning steps: what each removes, what it must leave, and what it counts."""

import unicodedata

import pytest
from corpora import write_jsonl

from minigpt.corpus.cleaning import (
    Cleaner,
    chinese_share,
    drop_chat_marks,
    drop_controls,
    drop_litter,
    drop_templates,
    is_boilerplate,
    normalize_widths,
    simplify,
)
from minigpt.corpus.records import Article
from minigpt.settings.stages import CLEANING, PrepareSettings


def cleaner(*steps, **settings):
    chosen = PrepareSettings()
    chosen.clean = list(steps)
    for name, value in settings.items():
        setattr(chosen, name, value)
    return Cleaner(chosen)


def article(text, title=""):
    return Article("a.jsonl", 1, title, text, title)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("河\u200b上\ufeff的\u00ad桥", "河上的桥"),
        ("河\x00\x07\x1b[1m\x7f\x85桥", "河[1m桥"),
        ("\u202e河\u2066桥\u2069\u2028", "河桥"),
        ("一\t二\n三\r\n四", "一\t二\n三\r\n四"),  # the layout stays
        ("ﬁn 😀𠀀 é ㍿", "ﬁn 😀𠀀 é ㍿"),
    ],
)
def test_control_characters_are_removed_and_layout_and_letters_stay(text, plain):
    assert drop_controls(text) == plain


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("ＡＢＣ１２３ａｂｃ", "ABC123abc"),
        ("ｶﾀｶﾅ", "カタカナ"),
        ("全角　空格\u00a0", "全角 空格 "),
        ("\uf900\uf9d1", "豈六"),  # compatibility ideographs
        ("Ⅳ ﬁ ﬂ ㈱", "IV fi fl ㈱"),
        ("，。！？：；（）「」“”《》～…—・％＃", "，。！？：；（）「」“”《》～…—・％＃"),  # punctuation keeps its width
        ("x² H₂O ½ ① ㎡ ™", "x² H₂O ½ ① ㎡ ™"),  # 2 is not ²
        ("水河桥あいう한글é", "水河桥あいう한글é"),
    ],
)
def test_widths_are_normalized_where_no_meaning_is_lost(text, plain):
    assert normalize_widths(text) == plain


def test_every_plain_form_is_unicodes_own():
    every = "".join(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0x30000)]))
    for before in every:
        after = normalize_widths(before)
        assert after in (before, unicodedata.normalize("NFKC", before))
        if unicodedata.category(before)[0] == "P":
            assert after == before


def test_traditional_becomes_simplified_in_articles_titles_and_questions():
    steps = cleaner("simplify", "title")
    assert simplify("臺灣的鐵路與頭髮") == "台湾的铁路与头发" and steps.text("誰發現了鐳？") == "谁发现了镭？"
    assert steps.clean(article("鐵橋\n\n鐵橋在河上。", "鐵橋")) == ("铁桥在河上。", None)
    assert steps.changed == {"simplify": 1, "title": 1}
    assert simplify("铁路。") == "铁路。"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("桥{{来源|a={{b}}}}在河上。", "桥在河上。"),
        ("桥<ref name=a>书，第1页</ref>在<br/>河<ref name=a/>上。", "桥在河上。"),
        ("[[文件:a.jpg|thumb|桥]]桥在[[黄河|河]]上，见[[桥]]。", "桥在河上，见桥。"),
        ('{| class="wikitable"\n| 桥\n|}桥在河上。__NOTOC__', "桥在河上。"),
        ("桥[1]在河[23]上。[编辑]", "桥在河上。"),
        ("桥在[http://a.b/c 河]上。[https://x.y/z]", "桥在河上。"),
        ("桥&nbsp;在&lt;河&gt;上&amp;。", "桥\u00a0在<河>上&。"),
        ("<!-- 注 -->桥在河上。<sup>2</sup>", "桥在河上。2"),
        ("桥[长]在河上[2008年]，a < b，{甲}。", "桥[长]在河上[2008年]，a < b，{甲}。"),  # no remnants
    ],
)
def test_remnants_of_templates_are_removed_and_their_words_stay(text, plain):
    assert drop_templates(text) == plain


def test_nested_brackets_are_cleaned_in_linear_time():
    for text in (
        "{{" * 50_000,
        "[[" * 50_000,
        "<ref>" * 20_000,
        "{|" * 50_000,
        "[http://a " * 20_000,
        "[http://" * 20_000,
    ):
        drop_templates(text)
    drop_litter("（" * 50_000 + "）" * 50_000)


LIST = "\n".join(["桥梁列表", *(f"第{i}桥" for i in range(8))])


@pytest.mark.parametrize(
    ("text", "title", "expected"),
    [
        ("桥可以指：\n桥梁\n桥（姓）", "桥", True),
        ("桥可能是指下列事物。", "桥", True),
        ("桥是人们常用的字。", "桥 (消歧义)", True),
        ("#REDIRECT [[桥梁]]", "桥", True),
        ("桥\n\n#重定向 桥梁", "桥", True),
        (LIST, "桥梁列表", True),
        ("桥\n\n桥在河上。\n它很长。\n它很老。\n它是石头的。\n它有名。", "桥", False),
        ("桥是一种建筑，可以让人过河。", "桥", False),
        ("桥在河上。\n\n参见\n\n河", "桥", False),
        ("重定向是一种方法。", "重定向", False),
    ],
)
def test_boilerplate_is_distinguished_from_articles(text, title, expected):
    assert is_boilerplate(text, title) is expected


@pytest.mark.parametrize(
    ("text", "share"), [("桥在河上。", 1), ("桥 is a bridge", 1 / 10), ("123。", 0), ("", 0), ("桥a", 0.5)]
)
def test_the_share_of_chinese_is_of_letters_alone(text, share):
    assert chinese_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (
            "<|im_start|>写一句话 桥很长。<|im_end|> <|im_start|>再写 河很宽。<|im_end|>",
            "写一句话 桥很长。\n再写 河很宽。",
        ),
        ("<|im_start|>user\n桥？<|im_end|>\n<|im_start|>assistant\n长。<|im_end|>\n", "桥？\n长。"),
        ("<|im_start|>users say", "users say"),  # no role
        ("<s>[INST] <<SYS>>\n答。\n<</SYS>>\n\n桥？ [/INST] 长。 </s>", "答。\n桥？\n长。"),
        ("<|start_header_id|>user<|end_header_id|>\n\n桥？<|eot_id|>", "桥？"),
        ("[gMASK]<sop><|user|>\n桥？<|assistant|>\n长。", "桥？\n长。"),
        ("<start_of_turn>model\n长。<end_of_turn>", "长。"),
        ("<｜User｜>桥？<｜Assistant｜>长。<｜end▁of▁sentence｜>", "桥？\n长。"),
        ("<|Human|>: 桥？<eoh>\n<|MOSS|>: 长。<eom>", "桥？\n长。"),
        ("桥长。<|endoftext|>河宽。", "桥长。\n河宽。"),
        ("<s>桥长。</s><s>河宽。</s>", "桥长。\n河宽。"),
        ("划掉<s>的字</s>不读。", "划掉<s>的字</s>不读。"),  # HTML
        ("若 a<b 且 c>d，则 [1] 与 <ref> 不变 <|> || 。", "若 a<b 且 c>d，则 [1] 与 <ref> 不变 <|> || 。"),
        ("<|im_start|>" * 3000 + " " * 3000 + "<|", "<|"),
    ],
)
def test_the_marks_of_chat_templates_are_removed_and_other_signs_stay(text, plain):
    assert drop_chat_marks(text) == plain


def test_a_turn_of_a_chat_is_no_title():
    user, assistant = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
    text = f"{user}桥长吗<|eot_id|>{assistant}长。"
    assert Cleaner(PrepareSettings()).clean(article(text)) == ("桥长吗长。", None)


def test_lines_of_latin_words_are_joined_by_spaces():
    assert drop_litter("A long\nbridge.\r\n\r\nIt is old\n桥\n长") == "A long bridge. It is old桥长"


def test_steps_that_drop_give_their_reason_and_count_themselves():
    steps = cleaner("short", "foreign", "boilerplate", min_chars=5, min_chinese_share=0.5)
    assert steps.clean(article("桥。")) == ("", "fewer than 5 characters")
    assert steps.clean(article("A bridge over a river. 桥")) == ("", "less than 0.5 Chinese")
    assert steps.clean(article("桥可以指：桥梁。", "桥")) == ("", "boilerplate")
    assert steps.clean(article("桥在河的上面。")) == ("桥在河的上面。", None)
    assert steps.dropped == {"short": 1, "foreign": 1, "boilerplate": 1}


def test_steps_that_are_off_do_nothing():
    text = "鐵橋\n\nＡ\u200b（）[[橋]]。"
    assert cleaner().clean(article(text, "鐵橋")) == (text, None)
    for step in CLEANING:
        cleaner(step).clean(article(text, "鐵橋"))


def test_the_order_of_the_steps_does_not_depend_on_the_setting():
    text = "鐵橋\n\n橋（{{來源}}）在Ａ\u200b河上。"
    expected = ("桥在A河上。", None)
    names = ["controls", "widths", "simplify", "templates", "title", "litter"]
    assert cleaner(*names).clean(article(text, "鐵橋")) == expected
    assert cleaner(*reversed(names)).clean(article(text, "鐵橋")) == expected


def test_questions_are_prepared_in_the_characters_of_the_articles(tmp_path, script):
    write_jsonl(tmp_path / "wiki/a.jsonl", [{"id": 1, "title": "鐵橋", "text": "鐵橋在河上。"}])
    write_jsonl(tmp_path / "qa.jsonl", [{"question": "鐵橋在哪\u200b裡？", "answer": "鐵橋在Ａ河上。", "id": 1}])
    with open(tmp_path / "qa.jsonl", "a", encoding="utf-8") as file:
        file.write('{"question": "河？", "answer": "河。"}\n')  # the train part
    (tmp_path / "held.txt").write_text("铁桥\n", encoding="utf-8")
    flags = [
        "--qa_files=qa.jsonl",
        "--articles=wiki",
        "--clean=controls,widths,simplify",
        "--heldout=held.txt",
        "--val_share=0",
    ]
    run = script("data/prepare_sft.py", *flags)
    assert run.returncode == 0, run.stderr
    from data_utils import open_rows
    from minigpt.tokenizer import load_tokenizer

    rows, _ = open_rows(tmp_path / "data/processed_sft", "test")
    assert load_tokenizer().decode(rows[0].tolist()) == "铁桥在哪里？##铁桥在A河上。"
