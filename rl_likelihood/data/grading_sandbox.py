"""The child that `run_code` starts, by its path: sets limits, leaves the network and the file system, runs the program.

Not for importing: it imports nothing of ours, since it runs as `python -I -S -u grading_sandbox.py SETTINGS`, the
settings as JSON, with the program's text as standard input and the status pipe as file descriptor `status`.

Status lines: "ready NAME..." with the namespaces in force, "KEY passed" or "KEY failed REASON" from the program's
process, "ended EXITCODE" (minus the signal, if one ended it) from this one. The key is the caller's; a program that
leaves early never says it.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import types

NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SYS_MOUNT_SETATTR = 442  # the same number on x86_64 and aarch64
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 1
MS_NOSUID_NODEV = 2 | 4
CAPABILITY_VERSION_3 = 0x20080522

# Python's own events for what a graded program has no business with; sys.addaudithook cannot be undone.
REFUSED = (
    "socket.", "subprocess.", "ctypes.", "pty.", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn",
    "os.system", "os.startfile", "os.kill", "os.killpg", "signal.pthread_kill",
)  # fmt: skip


def refuse(event, arguments):
    """The audit hook: no sockets, no processes, no C functions."""
    if event.startswith(REFUSED):
        raise PermissionError(f"{event} is not allowed here")


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


def run(program, key, status):
    """Executes the program as a module of its own and writes the verdict. Does not return."""
    write, leave = os.write, os._exit
    module = types.ModuleType("program")  # not __main__: "if __name__ == '__main__'" is not for us
    sys.modules["program"] = module
    sys.argv = ["program"]
    sys.addaudithook(refuse)
    try:
        exec(compile(program, "program", "exec", dont_inherit=True), module.__dict__)
        verdict = "passed"
    except MemoryError:
        verdict = "memory"
    except BaseException as error:  # SystemExit too: it left before the end
        verdict = f"failed {type(error).__name__}: {str(error)[:200]!r}"
    write(status, (f"{key} {verdict}".replace("\n", " ") + "\n").encode("utf-8", "replace"))
    leave(0)


def main():
    settings = json.loads(sys.argv[1])
    status, key = settings["status"], settings["key"]
    program = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    in_force = []
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux":
        if settings["namespaces"]:
            in_force = leave_the_machine(libc, os.getcwd(), settings["file_bytes"])
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after: new namespaces take it back
    child = os.fork()  # process 1 of the new namespace: with it ends everything in there
    if child == 0:
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            libc.capset(struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24))  # what the namespace gave
        limit(settings)
        os.write(status, f"ready {' '.join(in_force)}\n".encode())
        run(program, key, status)
    _, code = os.waitpid(child, 0)
    os.write(status, f"ended {os.waitstatus_to_exitcode(code)}\n".encode())


if __name__ == "__main__":
    main()
