"""The child that `run_code` starts, by its path: sets limits, leaves the network and the file system, runs the program.

Not for importing: it imports nothing of ours, since it runs as `python -I -S -u sandbox.py SETTINGS`, the
settings as JSON, with the program's text as standard input and a file as descriptor `check`. Standard output takes
status lines, standard error what goes wrong before the program runs; what the program writes to either is dropped.

The program runs in a child of this process. The tests run in this one, which the child can neither read nor signal
where namespaces are in force; they call the program's function over two pipes, arguments and values as plain data.
So nothing that the program does in its own process makes a wrong value right.

Status lines, of this process alone: "refused NAME..." instead of all others, "child PID", "ready NAME..." with the
namespaces in force, "passed", "memory", "failed REASON" or "unreadable REASON", "ended EXITCODE" (minus the signal, if
one ended it).
"""

import builtins
import ctypes
import json
import os
import resource
import signal
import struct
import sys
import types

NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
SYS_MOUNT_SETATTR = 442  # the same number on x86_64 and aarch64
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 1
MS_NOSUID_NODEV = 2 | 4
CAPABILITY_VERSION_3 = 0x20080522

REPLY_BYTES = 32 << 20

# Python's own events for what a graded program has no business with; sys.addaudithook cannot be undone.
REFUSED = tuple(
    """socket. subprocess. ctypes. pty. os.fork os.forkpty os.exec os.posix_spawn os.spawn os.system os.startfile
    os.kill os.killpg signal.pthread_kill""".split()
)
CHANGES = """os.remove os.rename os.mkdir os.rmdir os.link os.symlink os.truncate os.chmod os.chown os.lchown os.utime
    os.setxattr os.removexattr os.chflags os.mkfifo os.mknod sqlite3.connect""".split()
# Where their directory descriptors begin, to which paths may be relative.
AT = {
    **dict.fromkeys(("os.remove", "os.rmdir"), 1),
    **dict.fromkeys(("os.mkdir", "os.rename", "os.link", "os.symlink", "os.chmod"), 2),
    **dict.fromkeys(("os.chown", "os.utime"), 3),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def refusal(folder):
    """The audit hook: no sockets, no processes, no C functions; with a folder, no changes outside of it."""
    # Its own copies: the program can change this module's.
    refused, changes, at, writing = REFUSED, frozenset(CHANGES), dict(AT), WRITING

    def refuse(event, arguments):
        if event.startswith(refused):
            raise PermissionError(f"{event} is not allowed here")
        if event == "import" and arguments[0].rpartition(".")[2] == "_posixsubprocess":
            raise PermissionError("_posixsubprocess is not allowed here")
        if folder is None:
            return
        if event == "open" and arguments[2] & writing:
            paths = arguments[:1]
        elif event in changes:
            paths = arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]
        else:
            return
        for path in paths:
            if isinstance(path, int):
                continue  # open already
            target = realpath(fsdecode(path))
            if target != folder and not target.startswith(folder + "/") and target != os.devnull:
                raise PermissionError(f"{event} of {target} is not allowed here")
        if event in at and any(isinstance(x, int) and x >= 0 for x in arguments[at[event] :]):
            raise PermissionError(f"{event} in another directory is not allowed here")

    realpath, fsdecode = os.path.realpath, os.fsdecode
    import _posixsubprocess  # its function raises no event of its own

    _posixsubprocess.fork_exec = lambda *_: refuse("subprocess.fork_exec", ())
    return refuse


def leave_the_machine(libc, folder, size):
    """New namespaces for users, network, processes, IPC and mounts, as far as this kernel lets us; their names.

    Mounts: everything read-only but `folder`, which becomes an empty file system in memory of `size` bytes.
    """
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_USER | NEW_NET | NEW_PIDS | NEW_IPC | NEW_MOUNTS) != 0:
        return []
    try:
        for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    except OSError:
        return ["network", "processes"]
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    if libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes)) != 0:
        return ["network", "processes"]
    if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", MS_NOSUID_NODEV, f"size={size},mode=700".encode()) == 0:
        os.chdir(folder)
    return ["network", "processes", "files"]


def limit(settings):
    """Resource limits of this process and its children."""
    memory, seconds, file_bytes = settings["memory_bytes"], settings["seconds"], settings["file_bytes"]
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, settings["processes"]),
        (resource.RLIMIT_CPU, int(seconds) + 2),  # in case nobody is left to end us
    ):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))


def pack(x):
    """Plain data as JSON; subclasses as what they extend. Refuses the rest: an object could equal anything."""
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    for kind in (list, tuple, set, frozenset):
        if isinstance(x, kind):
            return [kind.__name__, *map(pack, kind.__iter__(x))]
    if isinstance(x, dict):
        return ["dict", *([pack(k), pack(v)] for k, v in dict.items(x))]
    if isinstance(x, complex):
        return ["complex", x.real, x.imag]
    if isinstance(x, bytes):
        return ["bytes", *x]
    raise TypeError(f"{type(x).__name__} is not plain data")


def unpack(x):
    """What was packed."""
    if not isinstance(x, list):
        return x
    kind, *items = x
    if kind == "dict":
        return {unpack(k): unpack(v) for k, v in items}
    if kind == "complex":
        return complex(*items)
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "bytes": bytes}[kind](map(unpack, items))


def run(program, entry_point, calls, replies, folder):
    """In the child: executes the program as a module of its own, then answers calls of its function."""

    def send(*words):
        data = (json.dumps(words) + "\n").encode()
        while data:
            data = data[os.write(replies, data) :]

    module = types.ModuleType("program")  # not __main__: "if __name__ == '__main__'" is not for us
    sys.modules["program"] = module
    sys.argv = ["program"]
    sys.addaudithook(refusal(folder))
    try:
        exec(compile(program, "program", "exec", dont_inherit=True), module.__dict__)
    except MemoryError:
        send("memory")
    except BaseException as error:  # SystemExit too: it left before the end
        send("failed", f"{type(error).__name__}: {str(error)[:200]!r}")
    else:
        send("reached")
        for line in open(calls):  # noqa: SIM115  until the end of this process
            arguments, names = map(unpack, json.loads(line))
            try:
                value = pack(module.__dict__[entry_point](*arguments, **names))
            except BaseException as error:
                send("raised", type(error).__name__, str(error)[:200])
            else:
                send("value", value)
    os._exit(0)


class Gone(BaseException):
    """The child has ended, or talks nonsense. No Exception: tests that expect one must not catch it."""


def judge(check, calls, lines):
    """In this process, which the program cannot reach: "passed", "memory", "failed ...", "unreadable ..."."""

    def hear():
        line = lines.readline(REPLY_BYTES)
        if not line.endswith(b"\n"):
            raise Gone
        try:
            kind, *words = json.loads(line)
            return kind, unpack(words[0]) if kind == "value" else words
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Gone from None

    def candidate(*arguments, **names):
        data = (json.dumps([pack(arguments), pack(names)]) + "\n").encode()
        try:
            while data:
                data = data[os.write(calls, data) :]
        except BrokenPipeError:
            raise Gone from None
        kind, value = hear()
        if kind == "value":
            return value
        if kind != "raised" or len(value) != 2:
            raise Gone
        name, text = map(str, value)
        error = getattr(builtins, name, None)
        # StopIteration would end the loop of a test early, as if it had passed.
        others = UnicodeError, StopIteration, StopAsyncIteration
        is_error = isinstance(error, type) and issubclass(error, Exception) and not issubclass(error, others)
        raise error(text) if is_error else Exception(f"{name}: {text}")

    kind, words = hear()
    if kind != "reached":
        return "memory" if kind == "memory" else f"failed {' '.join(map(str, words))}"[:1000]
    if not check:
        return "passed"
    world = {"__name__": "tests"}
    try:
        setup = check["setup"]  # ends in a function without a body, or with nothing but its docstring
        try:
            code = compile(setup, "setup", "exec", dont_inherit=True)
        except SyntaxError:
            code = compile(setup.rstrip() + "\n    pass\n", "setup", "exec", dont_inherit=True)
        exec(code, world)
        world[check["entry_point"]] = candidate
        exec(compile(check["tests"], "tests", "exec", dont_inherit=True), world)
        tests = world["check"]
    except Exception as error:
        return f"unreadable {type(error).__name__}: {str(error)[:200]!r}"
    try:
        tests(candidate)
    except MemoryError:
        return "memory"
    except Exception as error:
        return f"failed {type(error).__name__}: {str(error)[:200]!r}"
    return "passed"


def main():
    settings = json.loads(sys.argv[1])
    status = os.dup(1)
    say = lambda line: os.write(status, (line.replace("\n", " ") + "\n").encode("utf-8", "replace"))
    program = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    in_force, folder = [], os.path.realpath(os.getcwd())
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux":
        if settings["namespaces"] is not False:
            in_force = leave_the_machine(libc, folder, settings["file_bytes"])
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after: new namespaces take it back
    if settings["namespaces"] is True and len(in_force) < 3:
        say(f"refused {' '.join(in_force) or 'nothing'}")
        return
    if sys.platform == "linux":
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # our memory and files are not the child's to open in /proc
    theirs, calls = os.pipe()
    replies, back = os.pipe()
    child = os.fork()  # process 1 of the new namespace: with it ends everything in there
    if child == 0:
        for fd in {status, settings["check"], calls, replies} - {-1}:
            os.close(fd)
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            libc.capset(struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24))  # what the namespace gave
            libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        limit(settings)
        os.dup2(nothing, 2)
        os.close(nothing)
        del libc
        os.write(back, b"\n")
        run(program, settings["entry_point"], theirs, back, None if "files" in in_force else folder)
    say(f"child {child}")
    os.close(theirs)
    os.close(back)
    if os.read(replies, 1) == b"\n":
        say(f"ready {' '.join(in_force)}")
    try:
        check = None
        if settings["check"] >= 0:
            with open(settings["check"]) as file:
                check = json.load(file)
        with open(replies, "rb") as lines:
            say(judge(check, calls, lines))
        os.kill(child, signal.SIGKILL)
        say("ended 0")
    except Gone:
        os.close(calls)
        _, code = os.waitpid(child, 0)
        say(f"ended {os.waitstatus_to_exitcode(code)}")
    os.killpg(0, signal.SIGKILL)  # this process too, and what the program left in its group


if __name__ == "__main__":
    main()
