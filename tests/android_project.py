"""Building an app of kapps-ship as far as that goes without Google's Maven repository.

aapt (of Debian) compiles its resources and packs it, Kotlin's own compiler compiles its code
against the declarations of android_stubs.py, and Groovy reads the scripts, as Gradle does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from android_stubs import compile_stubs
from missing import missing

_FRAMEWORK = "/usr/share/android-framework-res/framework-res.apk"

# What a Gradle script says, a line a call, behind the blocks that it is in.
_GROOVY = """
class Named {
    String path
    def propertyMissing(String name) { new Named(path: "$path.$name") }
    void propertyMissing(String name, value) { println("$path.$name $value") }
    String toString() { path }
}
class Recorder extends Script {
    List<String> blocks = []
    def run() { null }
    def propertyMissing(String name) { new Named(path: name) }
    void propertyMissing(String name, value) { println((blocks + [name, value]).join(' ')) }
    def methodMissing(String name, args) {
        def (bodies, values) = (args as List).split { it instanceof Closure }
        println((blocks + name + values).join(' '))
        blocks << name
        bodies.each { it.delegate = this; it.resolveStrategy = Closure.DELEGATE_FIRST; it() }
        blocks.pop()
        return this
    }
}
def settings = new org.codehaus.groovy.control.CompilerConfiguration(scriptBaseClass: Recorder.name)
new GroovyShell(Recorder.classLoader, new Binding(), settings).evaluate(new File(args[0]))
"""


def need(*tools: str) -> None:
    """Skips a test where one of them is not installed; in CI it has to be."""
    lacking = [tool for tool in tools if shutil.which(tool) is None]
    if "aapt" in tools and not Path(_FRAMEWORK).exists():
        lacking.append("android-framework-res")
    if lacking:
        missing(
            f"{', '.join(lacking)} not installed; Debian: aapt android-framework-res groovy "
            "default-jdk-headless; npm: kotlin-compiler"
        )


def kotlinc() -> str:
    """Kotlin's compiler: KAPPS_KOTLINC, or the one on the PATH."""
    return os.environ.get("KAPPS_KOTLINC") or "kotlinc"


def said(script: Path, tmp: Path) -> list[str]:
    """What a Gradle script says."""
    reader = tmp / "read.groovy"
    reader.write_text(_GROOVY)
    return _output("groovy", str(reader), str(script)).splitlines()


def packed(project: Path, package: str, tmp: Path) -> tuple[Path, Path]:
    """The app without its code, and R.java; the manifest gets the package that Gradle gives it."""
    source, manifest = project / "app/src/main", tmp / "AndroidManifest.xml"
    text = (source / "AndroidManifest.xml").read_text()
    manifest.write_text(text.replace("<manifest ", f'<manifest package="{package}" ', 1))
    app, generated = tmp / "app.apk", tmp / "generated"
    generated.mkdir()
    _output(
        *("aapt", "package", "-f", "-m", "-J", str(generated), "-M", str(manifest)),
        *("-S", str(source / "res"), "-A", str(source / "assets"), "-0", "tflite"),
        *("--min-sdk-version", "24", "--target-sdk-version", "29", "-I", _FRAMEWORK),
        *("-F", str(app)),
    )
    return app, next(generated.rglob("R.java"))


def compiled(project: Path, r_java: Path, more: str, tmp: Path) -> str:
    """Compiles the app's code, and `more` Kotlin, whose main is run; gives what it prints."""
    classes = compile_stubs(tmp, r_java)
    (tmp / "Run.kt").write_text(more)
    sources = [str(tmp / "Run.kt"), *map(str, project.rglob("*.kt"))]
    jar = str(tmp / "app.jar")
    _output(
        *(kotlinc(), "-Werror", "-jvm-target", "17", "-include-runtime", "-d", jar),
        *("-cp", str(classes), *sources),
    )
    return _output("java", "-cp", f"{jar}:{classes}", "RunKt")


def badging(app: Path) -> str:
    """What aapt tells of a package."""
    return _output("aapt", "dump", "badging", str(app))


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
