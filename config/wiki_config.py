"""A whole Chinese Wikipedia to rows, in simplified characters.

python data/download.py
python data/prepare.py config/wiki_config.py
"""

input_dir = ["data/downloads"]
overflow = "split"
report = True

# zhwiki mixes traditional and simplified characters, and has remnants of templates and pages that are no articles.
clean = [
    "controls",
    "widths",
    "simplify",
    "templates",
    "title",
    "litter",
    "short",
    "foreign",
    "boilerplate",
]
min_chars = 50
min_chinese_share = 0.5
val_share = 0.005  # of a million articles: thousands
