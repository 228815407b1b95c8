"""Patterns of Chinese text that several rooms need."""

import re

# One or more Chinese characters.
HAN_RUN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
