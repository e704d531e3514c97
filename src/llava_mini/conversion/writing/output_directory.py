# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
An output directory that appears whole or not at all, has one writer, and of which a kill leaves a whole one.

What is written grows in `OUTPUT.incomplete`, marked by a file that its writer holds locked; the lock ends with the
process, however that ends. At the end the mark says so, the old output becomes `OUTPUT.replaced`, the new one OUTPUT,
the old one is deleted and, last, the mark. So whatever a killed run leaves, the next one can tell what it is.

Where the system or the file system has no locks (Windows, some network disks), the mark alone keeps a second writer
away, and what a killed run left has to be deleted by hand.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llava_mini.conversion.reading.checkpoint_io import IN_PROGRESS, Tensors


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

# Everything but the weights: tokenizer, processor and configuration files come to less than this.
SMALL_FILES_BYTES = 64 * 2**20
# What the mark holds once everything is written.
FINISHED = "finished"


def _check_kind(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: give a directory to write into.")
    if os.path.ismount(output):
        raise ValueError(f"{output} is a mount point, which can't be replaced: give a directory in it.")


def _check_empty(output: Path, overwrite: bool) -> None:
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ValueError(f"{output} is not empty: choose another directory or pass --overwrite to replace it.")


def check_no_input_is_inside(output: Path, sources: Iterable[Path]) -> None:
    """
    Raises:
        ValueError: replacing `output`, or cleaning up after a killed run, would delete one of `sources`.
    """
    for source in sources:
        for folder in (output.resolve(), _incomplete(output), _replaced(output)):
            if folder in (source.resolve(), *source.resolve().parents):
                raise ValueError(f"{folder} holds the input {source}: choose another output directory.")


def check_disk_space(output: Path, tensors: Tensors) -> None:
    """
    Raises:
        ValueError: the disk of `output` can't hold the tensors.
    """
    parent = next(folder for folder in output.resolve().parents if folder.is_dir())
    needed = sum(tensor.nbytes for tensor in tensors.values()) + SMALL_FILES_BYTES
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ValueError(
            f"{parent} has {free / 1e9:.1f} GB free, but the output needs {needed / 1e9:.1f} GB: free some space or "
            "write to another disk."
        )


@contextmanager
def atomic_directory(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """
    A directory to write into, beside `output`, that becomes `output` when the block ends well and is removed when it
    doesn't. What killed runs left is settled first, and logged.

    Raises:
        ValueError: `output` is a file, a mount point, or a directory with something in it while `overwrite` is not set;
            somebody else is writing it, it can't be replaced, or something is in the way.
    """
    _check_kind(output)
    folder = _incomplete(output)
    new_parents = [parent for parent in output.parents if not parent.exists()]
    try:
        lock = _start(output, overwrite)
        try:
            try:
                yield folder
            except BaseException:
                _remove(folder)
                raise
            (folder / IN_PROGRESS).write_text(FINISHED)
            _put_in_place(output)
        finally:
            _unlock(lock)
    except BaseException:
        for parent in new_parents:
            with suppress(OSError):  # not empty, or never made
                parent.rmdir()
        raise


def _incomplete(output: Path) -> Path:
    return output.with_name(output.name + ".incomplete")


def _replaced(output: Path) -> Path:
    return output.with_name(output.name + ".replaced")


def _start(output: Path, overwrite: bool) -> int | None:
    """Takes the output's lock, settles what killed runs left, and leaves an empty, marked directory to write into."""
    folder = _incomplete(output)
    while True:
        lock = _lock(folder, output)
        try:
            if not _settle(output, overwrite):
                return lock
        except BaseException:
            if not _is_finished(folder):
                _remove(folder)
            _unlock(lock)
            raise
        _unlock(lock)


def _settle(output: Path, overwrite: bool) -> bool:
    """Goes on where a killed run stopped; whether `OUTPUT.incomplete` has become the output by that."""
    folder, replaced = _incomplete(output), _replaced(output)
    if (output / IN_PROGRESS).is_file():  # it was killed while it deleted the old one
        _unlock(_lock(output, output))
        _clean_up(output)
        logger.warning("%s is the whole output of a run that was killed while it deleted the old one.", output)
    if _is_finished(folder) and (overwrite or not output.is_dir() or not any(output.iterdir())):
        _put_in_place(output)
        logger.warning("%s is the whole output of a run that was killed before it put it there; done now.", output)
        _check_empty(output, overwrite)
        return True
    if _is_finished(folder):
        raise ValueError(
            f"{folder} is the whole output of a run that was killed before it replaced {output}: pass --overwrite, "
            "or move one of them."
        )
    if replaced.exists():
        raise ValueError(
            f"{replaced} is in the way, an output that was moved aside: rename it to {output.name}, or delete it."
        )
    if any(path.name != IN_PROGRESS for path in folder.iterdir()):
        logger.warning("%s was left by a run that was killed: it is deleted.", folder)
        _empty(folder)
    _check_empty(output, overwrite)
    return False


def _put_in_place(output: Path) -> None:
    folder, replaced = _incomplete(output), _replaced(output)
    try:
        if output.exists():
            output.rename(replaced)
        folder.rename(output)
    except OSError as error:
        if replaced.exists() and not output.exists():
            replaced.rename(output)
        _remove(folder)
        raise ValueError(f"{output} can't be replaced ({error}) and is as it was: give another directory.") from error
    _clean_up(output)


def _clean_up(output: Path) -> None:
    shutil.rmtree(_replaced(output), ignore_errors=True)
    if _replaced(output).exists():
        logger.warning("%s, the old output, can't be deleted: delete it yourself.", _replaced(output))
    (output / IN_PROGRESS).unlink()


def _is_finished(folder: Path) -> bool:
    mark = folder / IN_PROGRESS
    return mark.is_file() and mark.read_text() == FINISHED


def _empty(folder: Path) -> None:
    """Deletes everything but the mark."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != IN_PROGRESS:
            path.unlink()


def _remove(folder: Path) -> None:
    with suppress(OSError):
        _empty(folder)
        (folder / IN_PROGRESS).unlink()  # last, since without it nobody knows whose the rest is
        folder.rmdir()


def _lock(folder: Path, output: Path) -> int | None:
    """
    Makes `folder` with its mark and locks the mark, which has to be still in its place then.

    Returns:
        The lock, to be closed; `None` where there are no locks.
    """
    mark = folder / IN_PROGRESS
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()) and not mark.is_file():
                raise ValueError(f"{folder} is in the way, and no run left it: move it or choose another output.")
            is_new = not mark.exists()
            descriptor = os.open(mark, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # its writer has just moved or deleted it
            continue
        except FileExistsError as error:
            raise ValueError(f"{folder} is in the way: move it or choose another output.") from error
        try:
            if not _try_lock(descriptor, is_new, folder, output):
                return None
            if mark.is_file() and os.path.samestat(os.fstat(descriptor), mark.stat()):
                lock, descriptor = descriptor, None
                return lock
        finally:
            _unlock(descriptor)


def _try_lock(descriptor: int, is_new: bool, folder: Path, output: Path) -> bool:
    """Whether there are locks here; raises when somebody else holds this one."""
    try:
        if fcntl is None:
            raise OSError("no locks")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError as error:
        raise ValueError(
            f"{output} is being written by another run: wait for it, or choose another output directory."
        ) from error
    except OSError as error:
        if is_new:
            return False
        raise ValueError(
            f"{output} is being written by another run, or one was killed: this disk has no locks that would tell "
            f"({error}). If none is running, delete {folder / IN_PROGRESS if folder == output else folder}."
        ) from error


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
