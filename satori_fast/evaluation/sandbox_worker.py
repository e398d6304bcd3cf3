# SPDX-License-Identifier: Apache-2.0
"""The inner end of the sandbox: a program that shuts itself in, runs one command and reports.

It reads a request in JSON and writes a reply in JSON; `sandbox` starts it as a file, so it imports
the standard library alone. Isolated means: namespaces of its own (no network, no other process),
a root folder in memory with the copy and, read-only, the interpreter, a user without rights.
Against a hole in the kernel it is no defence. Not for: what a command means (`patches`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import stat
import struct
import sys
import time

TYPE_CHECKING = False  # a worker starts for every program: typing and pathlib are half of its start
if TYPE_CHECKING:
    from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
# Of <sched.h>: mounts, host name, IPC, users, process ids, network.
_NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
# Of <sys/mount.h> and <linux/mount.h>.
_NOSUID, _NODEV, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MOUNT_SETATTR, _HERE, _AT_RECURSIVE, _ATTR_READ_ONLY = 442, -100, 0x8000, 1
# Of <linux/prctl.h>.
_DEATH_SIGNAL, _DROP_CAPABILITY, _NO_NEW_RIGHTS = 1, 24, 38
_NUM_CAPABILITIES = 64
# Of <linux/ptrace.h> and <linux/wait.h>.
_CONTINUE, _SEIZE, _LISTEN = 7, 0x4206, 0x4208
_STOP_AT_BIRTHS = 0x2 | 0x4 | 0x8  # of fork, vfork and clone
_STOPPED_BY_TRACE, _ALL_CHILDREN = 128, 0x40000000
_DEVICES = ("null", "zero", "full", "random", "urandom")
_NOBODY = 65534
_MAX_NEW_FILES = 4096
_THREAD_BYTES = 80 * 2**20  # addresses that glibc reserves for a thread: its stack, its heap
_POLL_S = 0.005
_MAX_COLLECTED = 4 * 2**20
_OUTPUT_TAIL = 16 * 2**10

Request = dict[str, "Any"]


class Fault(Exception):
    """The sandbox could not be built: one line with the call and what the kernel says."""


def main() -> None:
    """Read a request from standard input, run its command, write the reply to standard output."""
    request = json.load(sys.stdin)
    try:
        _die_with_parent()
        if request["isolated"]:
            _enter_namespaces()
            _build_root(request)
            scratch = "/sandbox"
        else:
            scratch = request["folder"] + "/sandbox"
        reply = _serve(request, scratch)
    except Fault as error:
        reply = {"fault": str(error)}
    except OSError as error:
        reply = {"fault": f"{error.filename or 'sandbox'}: {error.strerror}"}
    sys.stdout.write(json.dumps(reply))
    sys.stdout.flush()
    # Process 1 takes all others with it.
    os._exit(0)


# --- walls ---------------------------------------------------------------------------------------


def _call(what: str, result: int) -> None:
    if result != 0:
        raise Fault(f"{what}: {os.strerror(ctypes.get_errno())}")


def _die_with_parent() -> None:
    if sys.platform == "linux":
        _LIBC.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def _enter_namespaces() -> None:
    """Return in process 1 of new namespaces; what was here waits for it and ends."""
    if not hasattr(_LIBC, "unshare"):
        raise Fault("this system has no namespaces")
    unshared, mapped = os.pipe(), os.pipe()
    outside = os.geteuid(), os.getegid()
    child = os.fork()
    if child:
        os.close(unshared[1])
        if os.read(unshared[0], 1):
            _map_users(child, outside)
            os.write(mapped[1], b"m")
        os.waitpid(child, 0)
        os._exit(0)
    _die_with_parent()
    os.close(mapped[1])
    _call("unshare", _LIBC.unshare(_NAMESPACES))
    os.write(unshared[1], b"u")
    if not os.read(mapped[0], 1):
        os._exit(0)  # the parent has reported why
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        os._exit(0)
    _die_with_parent()


def _map_users(child: int, outside: tuple[int, int]) -> None:
    """Map the caller to user 0 inside; for a caller who is root also nobody, who runs the command.

    Limits on processes do not bind root, and files of the kernel know root in every namespace.
    """
    more = f"\n{_NOBODY} {_NOBODY} 1" if outside[0] == 0 else ""
    if outside[0] != 0:
        _write(f"/proc/{child}/setgroups", b"deny")
    _write(f"/proc/{child}/uid_map", f"0 {outside[0]} 1{more}".encode())
    _write(f"/proc/{child}/gid_map", f"0 {outside[1]} 1{more}".encode())


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    result = _LIBC.mount(*encoded, ctypes.c_ulong(flags), data.encode())
    _call(f"mount {target}", result)


def _make_read_only(target: str) -> None:
    attributes = struct.pack("=4Q", _ATTR_READ_ONLY, 0, 0, 0)
    result = _LIBC.syscall(
        _MOUNT_SETATTR, _HERE, target.encode(), _AT_RECURSIVE, attributes, len(attributes)
    )
    _call(f"mount {target} read-only", result)


def _build_root(request: Request) -> None:
    """Make a root folder in memory, of limited size, the root of this process."""
    root = request["folder"]
    own = sum(len(text.encode()) + resource.getpagesize() for text in request["files"].values())
    size = request["limits"]["disk_bytes"] + own
    num_files = _MAX_NEW_FILES + 4 * (len(request["files"]) + len(request["links"]))
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    options = f"size={size},nr_inodes={num_files},mode=755"
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, options)
    for path in (*request["system"], *request["visible"]):
        _show(path, root)
    for name in _DEVICES:
        _bind(f"/dev/{name}", f"{root}/dev/{name}")
    os.mkdir(f"{root}/proc")
    _mount("proc", f"{root}/proc", "proc", _NOSUID | _NODEV)
    # A namespace inside this one would give its maker rights again.
    _write(f"{root}/proc/sys/user/max_user_namespaces", b"0")
    _make_read_only(f"{root}/proc")
    os.chroot(root)
    os.chdir("/")


def _show(path: str, root: str) -> None:
    target = f"{root}{path}"
    if os.path.islink(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(path), target)
    elif os.path.exists(path):
        _bind(path, target)
        _make_read_only(target)


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _write(target, b"")
    _mount(source, target, None, _BIND | _RECURSIVE)


# --- the command ---------------------------------------------------------------------------------


def _serve(request: Request, scratch: str) -> dict[str, Any]:
    copy, temporary = os.path.join(scratch, "copy"), os.path.join(scratch, "tmp")
    is_nobody = request["isolated"] and _is_mapped(_NOBODY)
    _write_files(request, copy, temporary)
    if is_nobody:
        _give_away((copy, temporary))
    name = os.path.join(scratch, "output")
    output = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.unlink(name)
    gate = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(gate[1])
        if os.read(gate[0], 1):
            _run_command(request, copy, temporary, output=output, is_nobody=is_nobody)
        os._exit(127)
    if request["isolated"]:
        _trace(pid)
    os.write(gate[1], b"g")
    ended, returncode = _watch(pid, request["limits"], scratch, isolated=request["isolated"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1 if request["isolated"] else -pid, signal.SIGKILL)
    length = os.fstat(output).st_size
    tail = os.pread(output, _OUTPUT_TAIL, max(0, length - _OUTPUT_TAIL))
    return {
        "ended": ended,
        "returncode": returncode,
        "output": tail.decode(errors="replace"),
        "collected": _collect(request["collect"], scratch),
    }


def _is_mapped(user: int) -> bool:
    with open("/proc/self/uid_map") as lines:
        return any(line.split()[0] == str(user) for line in lines)


def _write_files(request: Request, copy: str, temporary: str) -> None:
    os.makedirs(copy)
    os.makedirs(temporary)
    for name, text in request["files"].items():
        path = os.path.join(copy, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write(path, text.encode())
    for name, target in request["links"].items():
        path = os.path.join(copy, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(target, path)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _give_away(folders: tuple[str, ...]) -> None:
    for top in folders:
        for folder, _, names in os.walk(top):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)


def _run_command(
    request: Request, copy: str, temporary: str, *, output: int, is_nobody: bool
) -> None:
    """Become the command; the end of a forked child."""
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, 256)
        _limit_resources(request["limits"], isolated=request["isolated"])
        if request["isolated"]:
            _give_up_rights(is_nobody=is_nobody)
        os.chdir(copy)
        environment = {
            "HOME": temporary,
            "TMPDIR": temporary,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "PYTHONHASHSEED": "0",
        }
        os.execve(request["command"][0], request["command"], environment)
    except OSError as error:
        os.write(2, f"cannot start {request['command'][0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _limit_resources(limits: dict[str, Any], *, isolated: bool) -> None:
    # A second more until it is killed: the signal of the soft limit tells why.
    cpu = limits["cpu_seconds"]
    wanted = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_AS: (limits["memory_bytes"] + limits["processes"] * _THREAD_BYTES,) * 2,
    }
    if isolated:
        # Above the limit that is watched, so that what crosses it is seen to.
        wanted[resource.RLIMIT_NPROC] = (4 * limits["processes"],) * 2
    else:
        # No folder of limited size holds the files.
        wanted[resource.RLIMIT_FSIZE] = (limits["disk_bytes"],) * 2
    for kind, values in wanted.items():
        resource.setrlimit(kind, values)


def _give_up_rights(*, is_nobody: bool) -> None:
    for capability in range(_NUM_CAPABILITIES):
        _LIBC.prctl(_DROP_CAPABILITY, capability, 0, 0, 0)
    if is_nobody:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    _LIBC.prctl(_NO_NEW_RIGHTS, 1, 0, 0, 0)


def _trace(pid: int) -> None:
    """Have the births of a command's processes and threads wait for this process.

    It looks at the limits at each, so nothing forks faster than it is watched.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    _LIBC.ptrace.argtypes = [ctypes.c_long] * 4
    _call("ptrace", _LIBC.ptrace(_SEIZE, pid, 0, _STOP_AT_BIRTHS))


def _resume(pid: int, status: int) -> None:
    """Let a stopped process go on: past a birth, or with the signal that came."""
    number = os.WSTOPSIG(status)
    event = status >> 16
    if event == _STOPPED_BY_TRACE and number != signal.SIGTRAP:
        _LIBC.ptrace(_LISTEN, pid, 0, 0)  # stopped by a signal, until another wakes it
    else:
        _LIBC.ptrace(_CONTINUE, pid, 0, 0 if event else number)


def _watch(
    pid: int, limits: dict[str, Any], scratch: str, *, isolated: bool
) -> tuple[str, int | None]:
    """(what ended the command, its exit status) as soon as it ends or crosses a limit."""
    deadline = time.monotonic() + limits["seconds"]
    while True:
        changes = _changes(isolated=isolated)
        crossed = _crossed(limits, scratch) if isolated else None
        if crossed is not None:
            return crossed, None
        for changed, status, usage in changes:
            if os.WIFSTOPPED(status):
                _resume(changed, status)
            elif isolated and usage.ru_maxrss * 1024 > limits["memory_bytes"]:
                return "memory", None  # it took that between two looks
            elif changed == pid:
                returncode = os.waitstatus_to_exitcode(status)
                is_over = usage.ru_utime + usage.ru_stime >= limits["cpu_seconds"]
                if returncode == -signal.SIGXCPU or (returncode == -signal.SIGKILL and is_over):
                    return "cpu", None
                return "exit", returncode
        if time.monotonic() > deadline:
            return "timeout", None
        if not changes and isolated:
            signal.sigtimedwait([signal.SIGCHLD], _POLL_S)
        elif not changes:
            time.sleep(_POLL_S)


def _changes(*, isolated: bool) -> list[tuple[int, int, resource.struct_rusage]]:
    """Ends, and stops, of processes and threads since the last look; orphans among them."""
    options = os.WNOHANG | (_ALL_CHILDREN if isolated else 0)
    changes: list[tuple[int, int, resource.struct_rusage]] = []
    with contextlib.suppress(ChildProcessError):
        while (change := os.wait4(-1, options))[0]:
            changes.append(change)
    return changes


def _crossed(limits: dict[str, Any], scratch: str) -> str | None:
    """The limit that all processes of the sandbox together are over."""
    num_threads = num_pages = 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or name == "1":
            continue
        with contextlib.suppress(OSError):
            # The name of a program, in brackets, may hold anything; fields 20 and 24 of proc(5).
            with open(f"/proc/{name}/stat", errors="replace") as file:
                values = file.read().rpartition(")")[2].split()
            num_threads += int(values[17])
            num_pages += int(values[21])
    if num_threads > limits["processes"]:
        return "processes"
    if num_pages * resource.getpagesize() > limits["memory_bytes"]:
        return "memory"
    disk = os.statvfs(scratch)
    return "disk" if disk.f_bavail == 0 or disk.f_favail == 0 else None


def _collect(names: list[str], scratch: str) -> dict[str, str]:
    """Text of the named files that are there: regular files, no links, of limited length."""
    found: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(OSError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(os.path.join(scratch, name), flags), "rb") as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    found[name] = file.read(_MAX_COLLECTED).decode(errors="replace")
    return found


if __name__ == "__main__":
    main()
