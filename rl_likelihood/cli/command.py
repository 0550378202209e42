"""The command line of the mains: config file, overrides, preset; every refusal in one line."""

import logging
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from rl_likelihood.config import apply_preset, flatten, no_field, tree
from rl_likelihood.errors import INTERRUPTED, REFUSED, UserError, located
from rl_likelihood.fields import nearest
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import outlive_the_terminal
from rl_likelihood.runtime.watch import LOST, Unreachable
from rl_likelihood.weights.assets import cache_dir

HELP = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}
STOPPED_EXIT = "STOPPED_EXIT"  # environment: the exit code of a run that was asked to stop, and saved


def run_main(main: Callable[[], bool | None], config_file: bool = True, in_bucket: bool = False) -> None:
    """Run a main: flags first, then `main()`. Every refusal is one line on stderr and exit code 2 (1 where processes
    did not find each other: another start may succeed). Ctrl-C is one line and 130. `in_bucket`: --workdir may be
    gs://BUCKET/RUN."""
    outlive_the_terminal()
    if config_file:
        config_flags.DEFINE_config_file("config", None, "path of a config, as configs/NAME.py[:key=value,...]")

    def parse(argv: list[str]) -> list[str]:
        quiet_start()
        if HELP & set(argv[1:]):
            print(usage())
            sys.exit(0)
        return parse_flags(argv, config_file)

    def command(_: list[str]) -> None:
        try:
            guarded(main, in_bucket)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # during Python's own end it would print a traceback

    app.run(command, flags_parser=parse)


def quiet_start() -> None:
    """What is set before jax starts."""
    # Hide jax's warnings about backends that it does not find: a refusal must be the only line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("xla_bridge", "distributed"):
        logging.getLogger(f"jax._src.{name}").setLevel(logging.WARNING)
    os.environ["XLA_FLAGS"] = in_order(os.environ.get("XLA_FLAGS", ""))
    keep_programs()


def parse_flags(argv: list[str], config_file: bool) -> list[str]:
    """The flags, or a refusal of what is wrong with them."""
    file = find_config(argv) if config_file else None
    try:
        remaining = flags.FLAGS(argv)
    except (Exception, SystemExit) as error:  # a config file is a program: anything may go wrong in it
        why = explained(error, argv)
        refuse(f"config file {file} has no function get_config()" if "no attribute 'get_config'" in why else why)
    if len(remaining) > 1:
        refuse(f"unknown argument {remaining[1]!r}; flags start with --")
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if isinstance(value, float) and not math.isfinite(value) and not name.startswith("config."):
            refuse(f"--{name} is {value}; it must be a finite number")
        if isinstance(value, str) and not name.startswith("config."):  # those: fields.checked
            flags.FLAGS[name].value = os.path.expanduser(value)  # shells leave --workdir=~/run
    if config_file:
        flag = flags.FLAGS["config"]
        if not flag.present:
            refuse("--config is missing; for example --config=configs/quickstart.py")
        try:
            flag.value["seed"]  # a config that could not be loaded says so when it is read
        except OSError as error:
            refuse(located(error.__cause__ or error.__context__ or error))
        except TypeError:
            pass  # it is None
        if not isinstance(flag.value, ConfigDict):
            refuse(f"--config: get_config() gives {flag.value!r}; it must return the config that configs/base.py gives")
    return remaining


def find_config(argv: list[str]) -> Path | None:
    """The config file. Refuses one that is not there. Config files import one another as configs.NAME, wherever the
    command runs."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if argument == "--config" or argument.startswith("--config="):
            given = following if argument == "--config" else argument.removeprefix("--config=")
            file = Path(given.partition(":")[0]).resolve()
            if not given:
                refuse("--config is empty; give a config file, as --config=configs/tiny.py")
            if file.is_dir():
                refuse(f"--config is {file}, which is a folder; give a config file in it")
            if not file.is_file():
                near = nearest(file.name, (p.name for p in file.parent.glob("*.py")))
                refuse(f"config file {file} does not exist" + (f"; did you mean {near}?" if near else ""))
            sys.path.insert(0, str(file.parent.parent))
            return file
    return None


def usage() -> str:
    main = sys.modules["__main__"]
    lines = [(main.__doc__ or "").strip(), "", "Flags:"]
    by_module = flags.FLAGS.flags_by_module_dict()
    for flag in sorted(
        (f for name in (sys.argv[0], "__main__", __name__) for f in by_module.get(name, [])), key=lambda f: f.name
    ):
        default = "" if flag.default in (None, "", False) else f" [{flag.default}]"
        lines.append(f"  --{flag.name:<18} {flag.help}{default}")
    if "config" in flags.FLAGS:
        lines.append(
            "  --config.FIELD=VALUE sets a field of the config; docs/config.md lists them, --print_config their values"
        )
    return "\n".join(lines)


def guarded(main: Callable[[], bool | None], in_bucket: bool = False) -> None:
    """`main()` after the other processes are found; how it ends decides the exit code and the one line.

    `main` returns True if it was asked to stop before it was done. Then the exit code is that of STOPPED_EXIT, or 0.
    """
    try:
        for name in ("workdir", "out"):
            if name in flags.FLAGS and flags.FLAGS[name].present:
                value = flags.FLAGS[name].value
                if not (in_bucket and name == "workdir" and value.startswith("gs://")):
                    refuse_address(f"--{name}", value)
        if "coordinator" in flags.FLAGS:
            join(flags.FLAGS)
        stopped_exit = os.environ.get(STOPPED_EXIT, "0")
        if not stopped_exit.isdecimal() or int(stopped_exit) > 255:
            raise UserError(f"{STOPPED_EXIT} is {stopped_exit!r}; set it to an exit code from 0 to 255")
        stopped = main()
    except UserError as error:
        shared = isinstance(error, distributed.SharedRefusal)
        if distributed.first() or not shared:
            distributed.say_error(str(error))
        code = LOST if isinstance(error, Unreachable) else REFUSED
        distributed.finish(code, together=shared, why=str(error))
        sys.exit(code)
    except distributed.SharedFailure:
        distributed.finish(1)
    except KeyboardInterrupt:  # of a run the second one, which saves nothing more
        print("stopped; the same command goes on from what was saved, if anything was", file=sys.stderr)
        distributed.finish(INTERRUPTED, together=False, why="stopped by Ctrl-C")
        sys.exit(INTERRUPTED)
    except BaseException as error:
        if distributed.several():  # no waiting for the others on the way out
            time.sleep(2)  # if another process has died, the watch says so and ends this one
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            code = getattr(error, "code", 1)
            why = distributed.named(error)
            distributed.finish(code if isinstance(code, int) else 1, together=False, why=why)
        raise
    code = int(stopped_exit) if stopped else 0
    distributed.finish(code)
    if code:
        sys.exit(code)


def in_order(xla_flags: str) -> str:
    """XLA's flags, with one more if they ask for several CPU devices.

    These share one pool of threads. XLA runs independent loops at the same time. If both have collectives, some devices
    may wait in one loop and the others in the other, until XLA aborts: half of the runs of a test did. With the flag
    the loops run one after the other.
    """
    flag = "--xla_cpu_enable_concurrency_optimized_scheduler"
    several = "--xla_force_host_platform_device_count" in xla_flags
    return f"{xla_flags} {flag}=false" if several and flag not in xla_flags else xla_flags


def keep_programs() -> None:
    """Keeps up to 4 GiB of compiled programs in the user's cache, which saves the next run of the same shapes minutes.

    JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false keeps none.
    """
    defaults = {
        "jax_compilation_cache_dir": str(cache_dir() / "programs"),
        "jax_compilation_cache_max_size": 4 * 2**30,
        "jax_persistent_cache_min_compile_time_secs": 0.5,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        for name, value in defaults.items():
            jax.config.update(name, value)


def required(name: str, example: str) -> str:
    """The value of a flag. UserError if it is missing."""
    value = flags.FLAGS[name].value
    if not value:
        raise UserError(f"--{name} is missing; for example --{name}={example}")
    return value


def define_processes() -> None:
    """The flags of a run of several processes."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, or JAX_COORDINATOR_ADDRESS; a Cloud TPU knows")
    flags.DEFINE_integer("num_processes", 0, "how many there are, or JAX_NUM_PROCESSES")
    flags.DEFINE_integer("process_id", -1, "which of them this is, or JAX_PROCESS_ID")
    flags.DEFINE_float("coordinator_wait", 300, "seconds to wait for the other processes", lower_bound=1)


def join(values: flags.FlagValues) -> None:
    """Finds the other processes, as flags and environment say."""
    heartbeat = values["config"].value.pod.heartbeat
    who = values.coordinator, values.num_processes, values.process_id
    distributed.start(*who, heartbeat=heartbeat, wait=values.coordinator_wait)


def refuse_address(name: str, value: str) -> None:
    """Refuses gs://bucket and the like: a run appends to files, renames and links them, which needs a folder."""
    if not value or value.startswith("--"):  # --workdir --dry_run would train in a folder of that name
        raise UserError(f"{name} is {value or 'empty'}; give a folder, as {name}=runs/first")
    if re.match(r"\w{2,}:/", value):
        raise UserError(f"{name} is {value}, which is no folder; mount it (a bucket with gcsfuse) and give that path")
    try:
        Path(value).exists()
    except OSError as e:  # such as a name that is too long, or a folder without permission
        raise UserError(f"{name} is {value}, which cannot be opened ({e.strerror}); choose another folder") from None


def explained(error: BaseException, argv: list[str]) -> str:
    """What is wrong with the command line, in the user's words instead of those of ml_collections."""
    fields = flatten(tree())
    for argument in argv:
        name = argument.removeprefix("--config.").partition("=")[0]
        if not argument.startswith("--config.") or name in fields:
            continue
        return no_field(name, fields, "--config.")
    return _first_sentence(error)


_KINDS = {"to float": "a number", "for int": "a whole number", "Non-boolean": "true or false"}


def _first_sentence(error: BaseException) -> str:
    """The message of the error that began it: ml_collections and absl wrap what a config file raises."""
    origin = error
    while before := origin.__cause__ or (None if origin.__suppress_context__ else origin.__context__):
        origin = before
    by_config = "parsing config file" in str(error) or not isinstance(error, flags.Error)
    if not by_config:
        origin = error
        unread = re.fullmatch(r"flag --(\S+?)=(.*): .*(to float|for int|Non-boolean).*", str(error))
        if unread:
            flag, value, why = unread.groups()
            return f"--{flag} is {value!r}; it must be {_KINDS[why]}"
    message = " ".join(str(origin.args[0] if origin.args else origin).split())
    return located(error) if by_config and not isinstance(origin, UserError) else message


def refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def from_flags() -> tuple[ConfigDict, list[str]]:
    """The config of --config with its preset and the command line's overrides, and the names overridden."""
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    c = flags.FLAGS["config"].value
    apply_preset(c, list(overrides))
    return c, list(overrides)
