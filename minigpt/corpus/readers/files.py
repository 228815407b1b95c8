"""Input files: finding them in folders, and naming what is found but not read."""

import os
from collections import defaultdict
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.corpus.readers.compression import split_suffixes
from minigpt.corpus.readers.encodings import print_note
from minigpt.corpus.readers.unread import recognize_unread, refuse_unread, unread_error, unread_format, unread_suffix

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", "")  # "": wikiextractor's files
TEXT_SUFFIX = ".txt"
# Files that tell about data: by the beginning of their names, and those that the library `datasets` writes.
ABOUT_DATA_STEMS = ("readme", "license", "licence", "notice", "copying")
ABOUT_DATA_SUFFIXES = ("", ".md", ".txt", ".rst", ".html")
ABOUT_DATA_NAMES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
DOWNLOAD_NOTE_SUFFIX = ".partial.json"  # what a download notes beside an unfinished file


def is_about_data(name):
    """Whether a file that is found in a folder holds no data, by its name."""
    low = name.lower()
    is_readme = low.startswith(ABOUT_DATA_STEMS) and Path(low).suffix in ABOUT_DATA_SUFFIXES
    return name.startswith(".") or is_readme or low in ABOUT_DATA_NAMES or low.endswith(DOWNLOAD_NOTE_SUFFIX)


def files_in_folder(folder, left_out=""):
    """Yields the paths of the files in a folder, at any depth, that may hold data. left_out: a folder to skip."""
    for root, inner, names in os.walk(folder):
        inner[:] = [n for n in inner if not n.startswith(".") and os.path.abspath(f"{root}/{n}") != left_out]
        # Pipes and dangling links are no files.
        yield from filter(os.path.isfile, (os.path.join(root, name) for name in names if not is_about_data(name)))


def find_in_folder(folder, plain_text, left_out=""):
    """[path] of the files in a folder that are read. Prints a note of those that are not.

    Raises UserError where it has files of formats that are not read, and no others.
    """
    rows, texts, unread = [], [], defaultdict(list)
    for path in files_in_folder(folder, left_out):
        suffix = split_suffixes(path)[0]
        is_input = suffix in (*ROW_SUFFIXES, TEXT_SUFFIX)
        format = recognize_unread(path) if is_input else unread_suffix(path)
        if format:
            unread[format].append(path)
        elif is_input:
            (texts if suffix == TEXT_SUFFIX else rows).append(path)
    for format, paths in unread.items():
        if not rows and not texts:
            raise unread_error(paths[0], format)
        what, how = unread_format(format, paths[0])
        print_note(f"{not_read(paths, format, folder)} ({what}); {how}")
    if rows and texts and not plain_text:
        print_note(f"{not_read(texts, TEXT_SUFFIX, folder)}; --plain_text reads them")
        return rows
    return rows + texts


def not_read(paths, suffix, folder):
    """The words that so many files of a suffix in a folder are not read."""
    return (
        f"1 {suffix} file in {folder} is not read"
        if len(paths) == 1
        else f"{len(paths)} {suffix} files in {folder} are not read"
    )


def find_files(folders, setting="input_dir", plain_text=False, leave_out=""):
    """Sorted paths of all files of articles in folders (any depth), and of the files that are named directly.

    In folders, files of ROW_SUFFIXES are found, and `.txt` files where plain_text is set or the folder has no others;
    any of them may be compressed (`.gz .bz2 .xz .zst`), Parquet excepted. What else looks like data is named on stderr.
    leave_out: a folder to skip. Raises UserError when a folder does not exist, no file is found, or a file has a format
    that is not read; `setting` is the setting that named them.
    """
    if not any(folders):
        raise UserError(f"{setting} is empty; name your folder of articles with --{setting}=…")
    found, left_out = [], leave_out and os.path.abspath(leave_out)
    for folder in folders:
        if not os.path.exists(folder):
            raise UserError(f"input {folder} is not there; name your folder or files with --{setting}=…")
        if os.path.isfile(folder):
            refuse_unread(folder)
            found.append(folder)
        else:
            found += find_in_folder(folder, plain_text, left_out)
    if not found:
        raise UserError(
            f"no .jsonl, .json or .parquet file in {', '.join(map(str, folders))}, and no .csv, .tsv or .txt file; "
            'a row is {"id", "title", "text"}, compressed or not (.gz .bz2 .xz .zst)'
        )
    return sorted(dict.fromkeys(Path(f).as_posix() for f in found))
