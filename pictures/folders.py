"""Which files of a folder are pictures and videos to upscale, and what their results are called.

Not here: what is in the files (formats.py, video.py).
"""

import functools
import hashlib
import os
import re
from collections import Counter
from pathlib import Path

from pictures.opening import MORE_SUFFIXES
from pictures.pixels import IMAGE_SUFFIXES
from pictures.video import UNFINISHED, VIDEO_SUFFIXES

KNOWN_SUFFIXES = IMAGE_SUFFIXES | MORE_SUFFIXES | VIDEO_SUFFIXES
RESULT = re.compile(r"(.+)_x[\d.]+(_compare|_part)?", re.DOTALL)  # the stem of a result, after that of its input
NAME_LIMIT = 255  # bytes in the name of a file


def is_video(path):
    return path.suffix.lower() in VIDEO_SUFFIXES


def find_inputs(inputs, recursive=False, output=None):
    """The files to upscale: those given, and the images and videos of the folders given, sorted.

    A dict: each with the place of its result in the output folder, without what is added to its name. A path that cannot
    be read, or has nothing in it, stays among them: it is an error of its own when its turn comes.
    """
    places, stems = {}, functools.cache(stems_of_results)
    for path in inputs:
        try:
            folder = path.is_dir()
        except OSError:
            folder = False
        found = look_into(path, recursive, output) if folder else []
        for file in found or [path]:
            inner = file.relative_to(path).parent if found else Path()
            places.setdefault(file, inner / stems(file.parent).get(file.name, file.stem))
    return places


def look_into(folder, recursive, output):
    """The images and videos of a folder, without results of earlier calls; says how many of what else is in it.

    Names that begin with a dot are the system's, as ._b.jpg is macOS's for what it knows of b.jpg, unless they have a known
    ending. The output folder below it is left out.
    """
    files, unreadable, others, seen = [], [], Counter(), set()
    target = output and os.path.realpath(output)
    walk = os.walk(folder, followlinks=True, onerror=lambda error: unreadable.append(Path(error.filename)))
    for root, folders, names in walk:
        real = os.path.realpath(root)
        if real in seen or (seen and real == target):  # a link to a folder above, or beside; the results
            others["folders under a second name"] += real in seen
            folders.clear()
            continue
        seen.add(real)
        if not recursive:
            others["in folders (see --recursive)"] += len(folders)
            folders.clear()
        folders.sort()
        unfinished = {name for name in names if name.startswith(".") and name.endswith(UNFINISHED)}
        for file in (Path(root, name) for name in names if not name.startswith("._") and name not in unfinished):
            if file.suffix.lower() in KNOWN_SUFFIXES:
                files.append(file)
            elif not file.name.startswith("."):
                others[file.suffix.lower() or "without an ending"] += 1
    sources = {}
    for file in files:
        for stem in {file.stem, file.name, f"{file.name}_", shortened(file.stem), shortened(file.name)}:
            sources.setdefault((stem, is_video(file)), []).append(file.parent.parts)
    found = [file for file in files if not is_result(file, sources)]
    others["results of earlier calls (give them by name to enlarge them again)"] = len(files) - len(found)
    if told := ", ".join(f"{count} {what}" for what, count in sorted(others.items()) if count):
        print(f"{folder}: left out: {told}")
    return sorted(found + unreadable)


def is_result(file, sources):
    """Whether a file is named as the result of one of `sources`, {(stem, is_video): [parts of its folder]}.

    That may lie beside it, or in a folder above, of which this one has the structure.
    """
    match = RESULT.fullmatch(file.stem)
    for parts in sources.get((match[1], is_video(file)), ()) if match else ():
        mine = iter(file.parent.parts)
        if all(part in mine for part in parts):  # in this order
            return True
    return False


def stems_of_results(folder):
    """{name: stem of the result} of the images and videos in a folder, by what is in it, whatever else is upscaled or was.

    So a.jpg has the same result in each call: a, or a.jpg if there is an a.png too. Case does not count, as on many disks.
    """
    try:
        with os.scandir(folder) as entries:
            files = sorted(Path(entry.name) for entry in entries if Path(entry.name).suffix.lower() in KNOWN_SUFFIXES)
            files = [file for file in files if not Path(folder, file).is_dir()]
    except OSError:
        return {}
    count = Counter((file.stem.casefold(), is_video(file)) for file in files)
    stems = {file.name: file.stem for file in files if count[file.stem.casefold(), is_video(file)] == 1}
    taken = {stem.casefold() for stem in stems.values()}
    for file in files:
        if file.name not in stems:
            stem = file.name
            while stem.casefold() in taken:
                stem += "_"
            stems[file.name] = stem
            taken.add(stem.casefold())
    return stems


def shortened(stem):
    """A long stem in at most 200 bytes, of which the last are a hash of the whole."""
    data = os.fsencode(stem)
    return f"{data[:180].decode(errors='ignore')}~{hashlib.sha256(data).hexdigest()[:12]}"


def path_of_result(place, tail):
    """The place with the tail after its name, which is shortened if no file could have it."""
    name = place.name + tail
    return place.with_name(name if len(os.fsencode(name)) <= NAME_LIMIT else shortened(place.name) + tail)
