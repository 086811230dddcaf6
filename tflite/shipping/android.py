"""An Android project around a .tflite file: Gradle, Kotlin, CameraX and MediaPipe Tasks.

The templates in the folder `android-project` are the project's files, filled in by Jinja.
"""

from __future__ import annotations

import os
import re
import shutil
from html import escape
from importlib import resources
from pathlib import Path

import jinja2

import kapps
from kapps._errors import InputError
from kapps._files import copy, temporary_folder
from kapps.tflite.metadata import read_metadata

ASSET = Path("app/src/main/assets/model.tflite")
_JAVA = Path("app/src/main/java")
# https://developer.android.com/build/configure-app-module: two parts at least, a letter first in
# each; and none may be a word of Java or, without quotes, of Kotlin.
_PACKAGE = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+")
_RESERVED = """
abstract as assert boolean break byte case catch char class const continue default do double else
enum extends false final finally float for fun goto if implements import in instanceof int interface
is long native new null object package private protected public return short static strictfp super
switch synchronized this throw throws transient true try typealias typeof val var void volatile when
while
"""


def check_package(package: str) -> str:
    """The package, if it is one.

    Raises:
        InputError: it is not.
    """
    words = set(package.split(".")) & set(_RESERVED.split())
    if not _PACKAGE.fullmatch(package) or words:
        reason = f": {min(words)} is a word of the language" if words else ""
        raise InputError(
            f"--package={package} is no name of an Android app{reason}; give one such as "
            "com.example.flowers"
        )
    return package


def write_project(
    folder: str | os.PathLike[str],
    file: str | os.PathLike[str],
    transform: kapps.EvalTransform,
    *,
    package: str,
    title: str,
) -> bool:
    """Writes the project, ready for Android Studio and for Gradle.

    Where the folder is there, it may have been worked on: only the model in it is replaced.

    Args:
        folder: of the project.
        file: the .tflite file, with its metadata.
        transform: how the file was evaluated; the app shows it the same part of the picture.
        package: of the app, such as "com.example.flowers".
        title: below the app's icon.

    Returns:
        Whether the project is new.

    Raises:
        InputError: there is no such package, the file has no metadata, or the folder cannot be
            written, or is another thing.
    """
    folder, metadata = Path(folder), read_metadata(file)
    if folder.exists():
        if not (folder / ASSET.parent).is_dir():
            raise InputError(
                f"{folder} is no Android project of kapps-ship: it has no {ASSET.parent}; move it"
            )
        copy(file, folder / ASSET)
        return False
    values = {
        "crop": repr(float(transform.crop)),
        "model": metadata.name,
        "package": check_package(package),
        "project": re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-") or "app",
        "squash": transform.crop_mode == "squash",
        "title": title,
    }
    templates = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent, prefix=".android-") as temporary:
            project = temporary / "android"
            with resources.as_file(resources.files(__package__) / "android-project") as source:
                for template in sorted(path for path in source.rglob("*") if path.is_file()):
                    text = templates.from_string(template.read_text(encoding="utf-8"))
                    here = _place(template.relative_to(source), package)
                    told = _escaped(values) if template.suffix == ".xml" else values
                    (project / here).parent.mkdir(parents=True, exist_ok=True)
                    (project / here).write_text(text.render(told), encoding="utf-8")
            (project / ASSET).parent.mkdir()
            shutil.copyfile(file, project / ASSET)
            os.replace(project, folder)
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror}; choose a folder that you may write"
        ) from error
    return True


def _place(path: Path, package: str) -> Path:
    """Kotlin lies in folders of the package's name."""
    return _JAVA.joinpath(*package.split("."), path.name) if path.suffix == ".kt" else path


def _escaped(values: dict[str, object]) -> dict[str, object]:
    r"""For a string of Android's resources: \, quotes and a first @ or ? are escaped as well."""
    title = re.sub(r"([\\'\"])", r"\\\1", str(values["title"]))
    title = re.sub(r"^([@?])", r"\\\1", title)
    return {**values, "title": escape(title, quote=False)}
