"""An arm64 board on an x86-64 machine: Debian's programs, each of them emulated by QEMU.

`python tests/arm_board.py` builds it ahead of the tests that use it. That takes a minute or two,
root, and Debian's `debootstrap` and `qemu-user-static`; what it is made of says where it is kept:
below ~/.cache/kapps, or in the folder KAPPS_ARM_BOARD.

What a board needs of the kernel is there only while it runs: mounts that its processes alone see,
which go with the last of them, and a handler of arm64 programs that goes with this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

_SUITE = "bookworm"
_PYTHON = "3.11"  # of that suite
_PACKAGES = (
    *("python3", "python3-numpy", "openssh-server", "procps", "findutils", "util-linux"),
    *("mksh", "toybox"),  # the shell and the commands of Android
)
RUNTIME = f"ai-edge-litert=={version('ai-edge-litert')}"  # the same as here
_FORM = 1  # raised when the build changes
_MIRROR = "http://deb.debian.org/debian"
_QEMU = "qemu-aarch64-static"
_TOOLS = {"debootstrap": "debootstrap", _QEMU: "qemu-user-static", "unshare": "util-linux"}

# QEMU 7.2's `max` computes int8 convolutions wrong, and on cortex-a72 the runtime's dot products
# are no instructions.
ENVIRONMENT = {"QEMU_CPU": "cortex-a76"}
CPUINFO = "".join(
    f"processor\t: {core}\nBogoMIPS\t: 50.00\n"
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
    "lrcpc dcpop asimddp\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\n"
    "CPU revision\t: 1\n\n"
    for core in range(os.cpu_count() or 1)
)
_USERS = "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"

# https://docs.kernel.org/admin-guide/binfmt-misc.html, with the head of an ELF file of machine 183.
# F: the emulator is opened now, so that it is found from within the board. It ends with its stdin,
# which is a pipe of this process, however that ends.
_EMULATE = r"""
set -e
mount -t binfmt_misc binfmt_misc "$1/run"
name=kapps-arm64-$$
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":$name:M::$magic:$mask:$1/usr/bin/$2:F" > "$1/run/register"
echo ready
cat > /dev/null
echo -1 > "$1/run/$name"
"""

# $1: the board; $2: a folder that it has at the same place as the host; then the command. /sys is
# what cpuinfo, and so the runtime's kernels, count the cores by.
_ENTER = """
set -e
root=$1; shared=$2; shift 2
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount --bind "$root/cpuinfo" "$root/proc/cpuinfo"
mount -t tmpfs tmpfs "$root/run"
mkdir "$root/run/sshd"
top=${shared#/}; top=${top%%/*}
mkdir -p "$root/$top"
mount -t tmpfs tmpfs "$root/$top"
mkdir -p "$root$shared"
mount --bind "$shared" "$root$shared"
exec chroot "$root" "$@"
"""


class CannotBuild(Exception):
    """Why there is no board here."""


def board() -> Path:
    """The folder of the board, built if there is none yet.

    Raises:
        CannotBuild: it cannot be built here; the message says what is missing.
    """
    recipe = repr((_SUITE, _PYTHON, _PACKAGES, RUNTIME, CPUINFO, _FORM))
    key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    cache = os.environ.get("KAPPS_ARM_BOARD") or Path.home() / ".cache" / "kapps"
    folder = Path(cache) / f"arm64-{key}"
    if os.getuid() != 0 or platform.machine() != "x86_64":
        raise CannotBuild("an emulated arm64 board needs root on an x86-64 machine")
    missing = sorted(package for tool, package in _TOOLS.items() if not shutil.which(tool))
    if missing:
        raise CannotBuild(f"an emulated arm64 board needs: apt-get install {' '.join(missing)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building it
        if not folder.exists():
            for left in folder.parent.glob(f"{folder.name}-*.tmp"):
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(
                prefix=f"{folder.name}-", suffix=".tmp", dir=folder.parent
            ) as temporary:
                _build(Path(temporary))
                (Path(temporary) / "root").rename(folder)
    return folder


def _build(folder: Path) -> None:
    root = folder / "root"
    include = ",".join(_PACKAGES)
    _run(
        *("debootstrap", "--foreign", "--variant=minbase", "--arch=arm64"),
        *(f"--include={include}", _SUITE, root, _mirror()),
    )
    # In place of debootstrap's second stage, in which an emulated dpkg would configure them.
    archives = sorted((root / "var/cache/apt/archives").glob("*.deb"))
    unpack = 'dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$2"'
    for archive in archives:
        _run("sh", "-c", unpack, "sh", archive, root)
        archive.unlink()
    for name in ("proc", "sys", "dev", "run"):  # debootstrap links /proc in containers
        if (root / name).is_symlink():
            (root / name).unlink()
        (root / name).mkdir(exist_ok=True)
    (root / "etc/passwd").write_text(_USERS)
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "cpuinfo").write_text(CPUINFO)
    libraries = root / "usr/lib/aarch64-linux-gnu"
    for name in ("blas", "lapack"):  # which update-alternatives would have chosen
        (libraries / f"lib{name}.so.3").symlink_to(f"{name}/lib{name}.so.3")
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 34)]
    _run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder),
        *("--only-binary=:all:", *platforms, "--python-version", _PYTHON, RUNTIME),
    )
    (wheel,) = folder.glob("*.whl")
    _run(sys.executable, "-m", "zipfile", "-e", wheel, root / "usr/lib/python3/dist-packages")
    shutil.copy(shutil.which(_QEMU) or _QEMU, root / "usr/bin")
    toys = subprocess.run(
        [_QEMU, "-L", root, root / "usr/bin/toybox"], check=True, capture_output=True, text=True
    ).stdout.split()
    android = root / "system/bin"
    android.mkdir(parents=True)
    for toy in toys:
        (android / toy).symlink_to("/usr/bin/toybox")
    (android / "sh").symlink_to("/usr/bin/mksh")


def _mirror() -> str:
    """Debian's mirror that this machine uses, if it is one of Debian."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        targets = subprocess.run(
            ["apt-get", "indextargets", "--format=$(REPO_URI) $(CODENAME)"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for line in targets.splitlines():
            address, _, suite = line.partition(" ")
            if suite == _SUITE:
                return address.rstrip("/")
    return _MIRROR


def _run(*command: object) -> None:
    done = subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise CannotBuild(f"{command[0]} fails with exit code {done.returncode}: {said}")


def require() -> Path:
    """The board's folder; skips the test where it cannot be built, but not as root in CI."""
    try:
        return board()
    except CannotBuild as error:
        must = os.environ.get("CI") and os.getuid() == 0
        (pytest.fail if must else pytest.skip)(str(error))


def command(root: Path, shared: Path, arguments: Sequence[str]) -> list[str]:
    """What runs a program of the board; it sees the folder `shared` of the host at its place."""
    enter = ["unshare", "--mount", "--propagation=private", "sh", "-c", _ENTER, "sh"]
    return [*enter, str(root), str(shared), *arguments]


@contextlib.contextmanager
def emulation(root: Path) -> Iterator[None]:
    """The kernel runs arm64 programs, for as long as this lasts, and this process.

    Raises:
        CannotBuild: the kernel has no binfmt_misc, or does not let us.
    """
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", _EMULATE, "sh", root, _QEMU],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that Ctrl-C does not end it before the programs
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            _, said = process.communicate()
            raise CannotBuild(f"the kernel does not let {_QEMU} run arm64 programs: {said.strip()}")
        yield
        process.stdin.close()


if __name__ == "__main__":
    try:
        print(board())
    except CannotBuild as error:
        sys.exit(str(error))
