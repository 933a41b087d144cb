"""Files that are read of a folder or a pattern: one split of one subset, and no file passed over.

Folders are laid out as dataset repositories on the Hub are: a file belongs to the split that its name or folder says
(`train-00000-of-00002.parquet`, `test/part-0.jsonl`), a folder of another name is a subset, and `data` is neither.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from qlora_cli.errors import DataError

_NOT_DATA = re.compile(r"[._].*|readme.*|licen[cs]e.*|.*\.(md|py)|dataset_infos?\.json", re.IGNORECASE)
"""Files of a folder that surely hold no rows: hidden ones, texts about the data, and what the Hub keeps beside it."""

_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= {"eval": "eval", "evaluation": "eval"}
_SPLITS |= {"dev": "validation", "val": "validation", "valid": "validation", "validation": "validation"}
"""Word in a file's name -> the split that it holds."""

_SHARD = re.compile(r"(.+?)-\d{4,}-of-\d{4,}")
"""The name of a shard, with the whole name of its split before the numbers."""

DATA_FOLDER = "data"
MAX_NAMED = 10
"""Splits or folders that an error names."""


def has_pattern(path: str) -> bool:
    """Whether a path holds `*`, `?` or `[`."""
    return glob.has_magic(path)


def split_of(file: Path, root: Path) -> str | None:
    """The split that a file's folders below `root` or its name say; None where they say none.

    >>> split_of(Path("d/train_sft-00000-of-00002.parquet"), Path("d")), split_of(Path("d/dev/a.jsonl"), Path("d"))
    ('train_sft', 'validation')
    """
    for folder in file.relative_to(root).parts[:-1]:
        if folder.lower() in _SPLITS:
            return _SPLITS[folder.lower()]
    shard = _SHARD.match(file.name)
    stem = shard.group(1) if shard else file.name
    if stem.lower() in _SPLITS:
        return _SPLITS[stem.lower()]
    found = [_SPLITS[word] for word in re.split(r"[^a-z]+", stem.lower()) if word in _SPLITS]
    if not found:
        return None
    return stem if shard else found[0]


def files_of_folder(
    folder: Path, split: str | None, subset: str | None, check: Callable[[Path], object], kinds: Sequence[str]
) -> list[Path]:
    """The data files of a folder, by name.

    Args:
        folder: that `save_to_disk` did not write.
        split: whose files are meant; None where the folder has one split.
        subset: a folder in it.
        check: refuses a file of an unknown kind.
        kinds: suffixes of data files, for errors.

    Raises:
        DataError: if there is none, or any file or folder would be passed over, or the split is not clear.
    """
    if subset is not None:
        folder = _subset_folder(folder, subset)
    files = _files_in(folder)
    if not files:
        raise DataError("the folder holds no data file", place=str(folder), hint=f"put files there: {', '.join(kinds)}")
    for file in files:
        check(file)
    return choose_split(files, folder, split, str(folder))


def files_of_pattern(pattern: str, split: str | None, check: Callable[[Path], object]) -> list[Path]:
    """The files that fit a pattern such as `data/train-*.parquet`, by name; `**` stands for any folders.

    Raises:
        DataError: if none fits, one is of an unknown kind, or the split is not clear.
    """
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
    files = [file for file in files if not _NOT_DATA.fullmatch(file.name)]
    fixed = next((place for place in Path(pattern).parents if not has_pattern(str(place))), Path())
    if not files:
        hint = "patterns start at the current directory" if fixed.is_dir() else f"folder '{fixed}' does not exist"
        raise DataError("no file fits the pattern", place=pattern, hint=f"{hint}: {Path.cwd()}")
    for file in files:
        check(file)
    return choose_split(files, fixed, split, pattern)


def choose_split(files: Sequence[Path], root: Path, split: str | None, place: str) -> list[Path]:
    """Those of the files that belong to a split; all of them where none is asked for and they are of one.

    Raises:
        DataError: files of several splits and none asked for, a split without files, or a file of no split beside it.
    """
    splits = [split_of(file, root) for file in files]
    known = sorted({name for name in splits if name is not None})
    if split is None:
        if len(known) > 1:
            first = next((name for name in known if name.startswith("train")), known[0])
            raise DataError(
                f"the files are of several splits: {', '.join(known[:MAX_NAMED])}",
                place=place,
                hint=f"set `split: {first}` to read all files of that one",
            )
        return list(files)
    asked = _SPLITS.get(split.lower(), split)
    if not known and asked == "train":
        return list(files)
    if asked not in known:
        hint = f"set `split` to one of: {', '.join(known[:MAX_NAMED])}" if known else "leave `split` out"
        raise DataError(f"no file of split '{split}'", place=place, hint=hint)
    for file, name in zip(files, splits, strict=True):
        if name is None:
            raise DataError(
                f"'{file.name}' says no split, and other files do: `split: {split}` would pass over it",
                place=place,
                hint=f"put the name of its split into it, or name the files by a pattern, e.g. {root}/*{asked}*",
            )
    return [file for file, name in zip(files, splits, strict=True) if name == asked]


def _files_in(folder: Path) -> list[Path]:
    """Files of the folder and of its folders that are named by split; of `data` where nothing is beside it."""
    entries = sorted(entry for entry in folder.iterdir() if not _NOT_DATA.fullmatch(entry.name))
    folders = [entry for entry in entries if entry.is_dir()]
    if len(entries) == 1 and folders and folders[0].name == DATA_FOLDER:
        return _files_in(folders[0])
    files = [entry for entry in entries if not entry.is_dir()]
    for entry in folders:
        if entry.name.lower() not in _SPLITS:
            others = ", ".join(other.name for other in folders[:MAX_NAMED] if other.name.lower() not in _SPLITS)
            raise DataError(
                f"the folder holds the folder '{entry.name}', which is not looked into",
                place=str(folder),
                hint=f"set `subset` to the folder that is meant ({others}), or name its files by a pattern, "
                f"e.g. {entry}/*",
            )
        files += _files_in(entry)
    return files


def _subset_folder(folder: Path, subset: str) -> Path:
    for place in (folder, folder / DATA_FOLDER):
        if (place / subset).is_dir() and Path(subset).name == subset:
            return place / subset
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _NOT_DATA.fullmatch(entry.name))
    hint = f"set `subset` to one of: {', '.join(found[:MAX_NAMED])}" if found else "leave `subset` out"
    raise DataError(f"the folder has no subset '{subset}', which would be a folder in it", place=str(folder), hint=hint)
