"""The articles that a script's settings name: found, read and cleaned in one way, whichever script asks.

`settings` has the fields of `ArticleFiles`: input_dir, text_field, plain_text and encoding.
"""

from minigpt.corpus.readers.files import find_files
from minigpt.corpus.readers.rows import read_blocks
from minigpt.corpus.records import read_articles

FEWEST_DOCUMENTS = 20  # from which on documents are split into parts by subject


def find_articles(settings, folders=None, setting="input_dir", leave_out=""):
    """Paths of all files of articles in settings.input_dir, or in the `folders` that another setting names."""
    return find_files(settings.input_dir if folders is None else folders, setting, settings.plain_text, leave_out)


def article_blocks(path, settings):
    """Yields every `FileBlock` of a file of articles."""
    return read_blocks(path, encoding=settings.encoding)


def articles_of(settings, files, problems, progress=None):
    """Yields (number, `Article`) of every article of the files; other rows are added to `problems`.

    `progress(n_bytes)` is called for bytes read.
    """
    return read_articles(files, problems, progress, settings.text_field, settings.encoding)


def cleaned_articles(settings, files, cleaner, problems, progress=None):
    """As `articles_of`, yields (number, `Article`, text after the steps of a `Cleaner`).

    Articles that a step drops are added to `problems`.
    """
    for number, article in articles_of(settings, files, problems, progress):
        text, reason = cleaner.clean(article)
        if reason:
            problems.add(reason, article.source, number)
        else:
            yield number, article, text
