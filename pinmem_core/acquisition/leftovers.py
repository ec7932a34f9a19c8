"""What runs that were killed left beside a folder that they were going to write."""

import os
import re
import shutil
from pathlib import Path


def clear_leftovers(folder: Path) -> None:
    """Remove the stagings of `folder` whose processes are gone."""
    staging = re.compile(rf"\.{re.escape(folder.name)}\.(\d{{1,9}})\.(part|old)")
    for path in folder.parent.glob(".*"):
        match = staging.fullmatch(path.name)
        if match and not _is_at_work(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_at_work(process: int) -> bool:
    if process == os.getpid():  # given out again: this process has not begun yet
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True
