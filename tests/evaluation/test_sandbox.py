# SPDX-License-Identifier: Apache-2.0
"""The sandbox: what a command sees, what it cannot reach, and the limit that ends it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from satori_fast.evaluation import sandbox
from satori_fast.evaluation.sandbox import PYTHON, IsolationError, Limits, Outcome, run

isolated = pytest.mark.skipif(
    sandbox.isolation_fault() is not None, reason=f"no isolation: {sandbox.isolation_fault()}"
)
# Wide in wall time: a busy machine ends nothing before its own limit does.
PATIENT = Limits(seconds=120.0, cpu_seconds=60)


def python(
    program: str,
    *,
    limits: Limits = PATIENT,
    collect: Sequence[str] = (),
    visible: Sequence[Path] = (),
) -> Outcome:
    files = {"main.py": "print('copied')\n", "folder/text": "caf\u00e9\n"}
    command = [*PYTHON, "-c", program]
    return run(command, files, limits=limits, collect=collect, visible=visible)


# --- a command and its copy ----------------------------------------------------------------------


@isolated
def test_command_sees_its_copy_and_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "1234")
    program = (
        "import os, sys; print(open('folder/text', encoding='utf-8').read().strip());"
        "print(sorted(os.environ)); print(os.getcwd(), os.environ['HOME']); print(hash('a'))"
    )
    first, second = python(program), python(program)
    assert first == second  # the hashes of texts too
    assert (first.ended, first.returncode) == ("exit", 0)
    lines = first.output.splitlines()
    assert lines[0] == "caf\u00e9"
    assert lines[1] == "['HOME', 'LC_ALL', 'PATH', 'PYTHONHASHSEED', 'TMPDIR']"
    assert lines[2] == "/sandbox/copy /sandbox/tmp"


@isolated
def test_files_come_back() -> None:
    program = """
import os
open("new", "w").write("1")
open(os.environ["TMPDIR"] + "/two", "w").write("2")
os.symlink("/proc/self/environ", "link")
os.mkfifo("pipe")
os.mkdir("empty")
"""
    names = ["copy/new", "tmp/two", "copy/link", "copy/pipe", "copy/empty", "copy/absent"]
    outcome = python(program, collect=names)
    assert outcome.returncode == 0
    assert outcome.collected == {"copy/new": "1", "tmp/two": "2"}


@isolated
def test_links_are_made() -> None:
    command = [*PYTHON, "-c", "import os; print(os.readlink('b'), open('b').read())"]
    assert run(command, {"a": "1"}, links={"b": "a"}, limits=PATIENT).output == "a 1\n"


@isolated
def test_exit_status_signal_and_missing_program() -> None:
    assert python("raise SystemExit(3)").returncode == 3
    assert python("import os; os.abort()").returncode == -6
    outcome = run(["/nowhere/program"], {}, limits=PATIENT)
    assert outcome.returncode == 127
    assert outcome.output == "cannot start /nowhere/program: No such file or directory\n"


@pytest.mark.parametrize("name", ["/a", "../a", "b/../../a"])
def test_a_file_outside_of_the_copy_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        run([*PYTHON, "-c", "pass"], {name: ""})
    with pytest.raises(ValueError, match="relative path"):
        run([*PYTHON, "-c", "pass"], {}, links={name: "b"})


# --- walls ---------------------------------------------------------------------------------------


@isolated
def test_the_network_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        local = python(f"import socket; socket.create_connection(('127.0.0.1', {port}))")
    assert local.output.splitlines()[-1] == "OSError: [Errno 101] Network is unreachable"
    # An address of the range for documentation.
    far = python("import socket; socket.create_connection(('192.0.2.1', 80))")
    assert far.output.splitlines()[-1] == "OSError: [Errno 101] Network is unreachable"
    named = python("import socket; socket.create_connection(('example.org', 80))")
    assert "socket.gaierror" in named.output


@isolated
def test_files_of_the_machine_are_hidden_or_read_only(tmp_path: Path) -> None:
    (tmp_path / "hidden").write_text("1")
    (tmp_path / "shown").write_text("2")
    program = f"""
import os
print(os.path.exists({str(tmp_path / "hidden")!r}), open({str(tmp_path / "shown")!r}).read())
print(os.path.exists("/etc/passwd"), os.path.exists({os.getcwd()!r} + "/pyproject.toml"))
for path in ({str(tmp_path / "shown")!r}, os.__file__, "/proc/sys/kernel/core_pattern"):
    try:
        open(path, "a")
    except OSError as error:
        print(error.errno in (1, 13, 30))
"""
    outcome = python(program, visible=[tmp_path / "shown"])
    assert outcome.output == "False 2\nFalse False\nTrue\nTrue\nTrue\n"


@isolated
def test_other_processes_are_out_of_sight() -> None:
    program = (
        "import os; print(sorted(n for n in os.listdir('/proc') if n.isdigit()) == "
        "sorted(['1', str(os.getpid())]))\n"
        "for call in (lambda: os.kill(1, 9), lambda: os.listdir('/proc/1/root')):\n"
        "    try: call()\n"
        "    except PermissionError: print('refused')\n"
    )
    # A user without a second user to map may signal process 1, which does not hear it.
    lines = python(program).output.splitlines()
    assert lines[0] == "True"
    assert set(lines[1:]) == {"refused"}


@isolated
def test_rights_cannot_be_had_again() -> None:
    program = """
import ctypes
library = ctypes.CDLL(None)
print(library.unshare(0x10000000), library.unshare(0x00020000))
print(library.mount(b"tmpfs", b"/sandbox/tmp", b"tmpfs", 0, None), library.chroot(b"/sandbox"))
rights = [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")]
print({int(right, 16) for right in rights})
"""
    assert python(program).output == "-1 -1\n-1 -1\n{0}\n"


@isolated
def test_sockets_of_other_kinds_reach_nobody(tmp_path: Path) -> None:
    """Datagrams, and the machine's own sockets by name and by path: a listener hears nothing."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as named,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as at_path,
    ):
        datagrams.bind(("127.0.0.1", 0))
        name, path = f"\0satori-{os.getpid()}", str(tmp_path / "listener")
        named.bind(name)
        at_path.bind(path)
        for listener in (named, at_path):
            listener.listen()
        for listener in (datagrams, named, at_path):
            listener.settimeout(0.05)
        program = f"""
import socket
tries = [
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(
        b"1", ("127.0.0.1", {datagrams.getsockname()[1]})
    ),
    lambda: socket.socket(socket.AF_UNIX).connect({name!r}),
    lambda: socket.socket(socket.AF_UNIX).connect({path!r}),
    lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
]
for reach in tries:
    try:
        reach()
        print("reached")
    except OSError as error:
        print(type(error).__name__)
"""
        outcome = python(program)
        assert "reached" not in outcome.output and len(outcome.output.split()) == 4
        with pytest.raises(TimeoutError):
            datagrams.recv(1)
        for listener in (named, at_path):
            with pytest.raises(TimeoutError):
                listener.accept()


# Programs that do as they like, and what they may print; each is contained, and ends by itself.
HOSTILE = {
    "link-to-outside": (
        "import os; os.symlink('/etc/passwd', 'a'); print(os.path.exists('a'))",
        "False\n",
    ),
    "link-by-the-way-up": (
        "import os; os.symlink('../' * 9 + 'etc/passwd', 'a'); print(os.path.exists('a'))",
        "False\n",
    ),
    "descriptors-of-the-caller": (
        "import os; print([n for n in os.listdir('/proc/self/fd') if int(n) > 3])",
        "[]\n",
    ),
    "signal-to-the-parent": (
        "import os, signal\n"
        "for target in (os.getppid(), 0, -1):\n"
        "    try: os.kill(target, signal.SIGCONT)\n"
        "    except OSError: pass\n"
        "print('alive')",
        "alive\n",
    ),
    "double-fork": (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(600)\n"
        "    os._exit(0)\n"
        "print('left')",
        "left\n",
    ),
    "closed-pipes": ("import os\nfor n in (0, 1, 2): os.close(n)\nos._exit(0)", ""),
    "deaf": (
        "import signal\n"
        "for n in (signal.SIGTERM, signal.SIGINT): signal.signal(n, signal.SIG_IGN)\n"
        "print('deaf')",
        "deaf\n",
    ),
    "deep-folders": (
        "import os\nfor _ in range(300):\n    os.mkdir('d'); os.chdir('d')\nprint('deep')",
        "deep\n",
    ),
    "no-rights-to-its-own": (
        "import os; os.mkdir('locked'); open('locked/a', 'w').write('1'); os.chmod('locked', 0)\n"
        "print('locked')",
        "locked\n",
    ),
}


@isolated
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_contained(name: str) -> None:
    program, printed = HOSTILE[name]
    outcome = python(program)
    assert (outcome.ended, outcome.output) == ("exit", printed)
    assert python("print(1)").output == "1\n"  # and the next one runs


@isolated
def test_of_a_million_lines_the_last_come_back() -> None:
    outcome = python("for n in range(10**6): print(n)")
    assert outcome.ended == "exit" and outcome.output.endswith("\n999998\n999999\n")
    assert 1000 < len(outcome.output) < 10**6


# --- limits --------------------------------------------------------------------------------------


@isolated
@pytest.mark.parametrize(
    ("program", "limits", "ended"),
    [
        ("import time; time.sleep(600)", Limits(seconds=0.5), "timeout"),
        ("while True: pass", Limits(seconds=120.0, cpu_seconds=1), "cpu"),
        ("import os\nwhile True: os.fork()", PATIENT, "processes"),
        (
            "import threading, time\n"
            "for _ in range(40): threading.Thread(target=time.sleep, args=(600,)).start()",
            PATIENT,
            "processes",
        ),
        (
            "import time\nheld = []\nwhile True: held.append(b'1' * 2**20)",
            Limits(seconds=120.0, cpu_seconds=60, memory_bytes=64 * 2**20),
            "memory",
        ),
        (
            "held = b'1' * 2**27\ndel held",
            Limits(seconds=120.0, memory_bytes=64 * 2**20),
            "memory",
        ),
        ("open('large', 'wb').write(bytes(2**27))", PATIENT, "disk"),
        ("for i in range(10**5): open(str(i), 'w')", PATIENT, "disk"),
        ("while True: print('line' * 1000)", PATIENT, "disk"),
    ],
    ids=[
        *("sleeps", "computes", "forks", "threads", "memory", "memory-for-a-moment"),
        *("large-file", "files", "output"),
    ],
)
def test_the_limit_is_named(program: str, limits: Limits, ended: str) -> None:
    assert python(program, limits=limits).ended == ended


@isolated
def test_processes_and_threads_one_after_another_are_few() -> None:
    program = """
import os, signal, threading
for number in range(40):
    child = os.fork()
    if child == 0:
        os._exit(number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == number
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
print("done")
"""
    outcome = python(program)
    assert (outcome.ended, outcome.output) == ("exit", "done\n")


@isolated
def test_signals_stop_and_wake_processes_as_anywhere() -> None:
    program = """
import os, signal
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(3)
print(os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1]))
os.kill(child, signal.SIGCONT)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.signal(signal.SIGUSR1, lambda number, frame: print("heard"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    assert python(program).output == "True\n3\nheard\n"


@isolated
def test_what_a_command_leaves_behind_dies_with_it() -> None:
    # The child would hold the pipe of the reply, or run on.
    program = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)"
    outcome = python(program)
    assert (outcome.ended, outcome.returncode) == ("exit", 0)


@isolated
def test_a_limit_counts_all_processes_together() -> None:
    program = (
        "import os, time\n"
        "for _ in range(4):\n"
        "    if os.fork() == 0:\n"
        "        held = os.urandom(30 * 2**20)\n"
        "        time.sleep(600)\n"
        "time.sleep(600)\n"
    )
    limits = Limits(seconds=120.0, memory_bytes=96 * 2**20)
    assert python(program, limits=limits).ended == "memory"


@isolated
def test_several_at_once_do_not_meet() -> None:
    outcomes: dict[int, str] = {}

    def work(number: int) -> None:
        program = "import os; open('own', 'x'); print(os.listdir('.'), open('number').read())"
        files = {"number": str(number)}
        outcomes[number] = run([*PYTHON, "-c", program], files, limits=PATIENT).output

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: text.split()[-1] for number, text in outcomes.items()} == {
        number: str(number) for number in range(4)
    }


# --- without isolation ---------------------------------------------------------------------------


@isolated
def test_a_sandbox_inside_the_sandbox_says_that_it_cannot() -> None:
    folder = Path(sandbox.__file__).parent
    program = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); import sandbox\n"
        "try: sandbox.run([*sandbox.PYTHON, '-c', 'pass'], {})\n"
        "except sandbox.IsolationError as error: print(error)\n"
    )
    outcome = python(program, visible=[folder])
    assert outcome.output == (
        "the sandbox cannot isolate here (unshare: No space left on device): allow unprivileged "
        "user namespaces, or say that the code is trusted\n"
    )


def test_refused_unless_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "isolation_fault", lambda: "unshare: Operation not permitted")
    command = [*PYTHON, "-c", "import os; print(os.getcwd()); open('new', 'w').write('1')"]
    with pytest.raises(IsolationError, match=r"\(unshare: Operation not permitted\)"):
        run(command, {"a": ""})
    outcome = run(command, {"a": ""}, trusted=True, collect=["copy/new"], limits=PATIENT)
    assert (outcome.ended, outcome.collected) == ("exit", {"copy/new": "1"})
    assert not Path(outcome.output.strip()).exists()
    sleeping = [*PYTHON, "-c", "import time; time.sleep(600)"]
    assert run(sleeping, {}, trusted=True, limits=Limits(seconds=0.5)).ended == "timeout"
