"""A scripted agent that solves telecom tasks as tau2's workflow says: it reads, repairs, and tests after each repair.

It sees what a model sees, the ticket and the replies, never the state. Each call comes with the thought behind it, so
a conversation is a sequence of thoughts and calls to learn from.
"""

import json
import re
from collections.abc import Generator
from typing import NamedTuple

from rl_likelihood.envs import telecom
from rl_likelihood.envs.telecom_state import TODAY, State, World
from rl_likelihood.envs.tools import Call

REFUEL_GB = 2.0  # the most that the policy allows, and what every ticket that names an amount agrees to
_PHONE = re.compile(r"phone number: ([\d-]+)")


class Act(NamedTuple):
    thought: str
    call: Call


class Turn(NamedTuple):
    act: Act
    reply: str


Acts = Generator[Act, str, bool]  # gets replies, and says whether the problem is gone


def solve(world: World, task: telecom.Task) -> tuple[list[Turn], State]:
    """The expert's conversation about a task, without the call that ends it, and the state it leaves."""
    state, turns = telecom.start(world, task), []
    acts = expert(task.ticket)
    try:
        act = next(acts)
        while True:
            reply = telecom.call(state, *act.call)
            turns.append(Turn(act, reply))
            act = acts.send(reply)
    except StopIteration:
        return turns, state


def expert(ticket: str) -> Acts:
    """All acts for a ticket. What nothing repairs goes to a human, last."""
    customer = json.loads((yield _act("I look the customer up.", "get_customer_by_phone", phone_number=_phone(ticket))))
    line = None
    for line_id in customer["line_ids"]:
        line = json.loads((yield _act(f"Is {line_id} the line of the ticket?", "get_details_by_id", id=line_id)))
        if line["phone_number"] == _phone(ticket):
            break
    case = _Case(ticket, customer["customer_id"], line["line_id"] if line else "")
    if "MMS" in ticket:
        solved = yield from _messages(case)
    elif "mobile data" in ticket:
        solved = (yield from _data(case)) and (yield from _fast(case))
    else:
        solved = yield from _service(case)
    if not solved:
        yield _act("Nothing that I may do helps.", "transfer_to_human_agents", summary="I cannot fix the issue.")
    return solved


class _Case(NamedTuple):
    ticket: str
    customer_id: str
    line_id: str

    @property
    def line(self) -> dict:
        return {"customer_id": self.customer_id, "line_id": self.line_id}


def _phone(ticket: str) -> str:
    match = _PHONE.search(ticket)
    return match[1].rstrip("-") if match else ""


def _act(thought: str, name: str, **arguments) -> Act:
    return Act(thought, Call(name, arguments))


# ---------------------------------------------------------------------------------------- service


def _has_service(thought: str) -> Acts:
    bar = yield _act(thought, "check_status_bar")
    return "No Signal" not in bar and "Airplane Mode" not in bar


def _service(case: _Case) -> Acts:
    if (yield from _has_service("Is there service?")):
        return True
    network = yield _act("There is none. Is airplane mode on?", "check_network_status")
    if "Airplane Mode: ON" in network:
        yield _act("It is, so it goes off.", "toggle_airplane_mode")
        if (yield from _has_service("Is there service now?")):
            return True
    sim = yield _act("How is the SIM card?", "check_sim_status")
    if sim.startswith("No SIM"):
        yield _act("It is missing, so it is put in again.", "reseat_sim_card")
        sim = yield _act("Is it active now?", "check_sim_status")
        if (yield from _has_service("Is there service now?")):
            return True
    if "locked" in sim:
        return False
    yield _act("The SIM card is fine. The APN may be broken.", "reset_apn_settings")
    yield _act("The reset takes effect at a reboot.", "reboot_device")
    if (yield from _has_service("Is there service now?")):
        return True
    return (yield from _suspension(case))


def _suspension(case: _Case) -> Acts:
    line = json.loads((yield _act("Is the line suspended?", "get_details_by_id", id=case.line_id)))
    ended = line["contract_end_date"] is not None and line["contract_end_date"] < TODAY
    if line["status"] != "Suspended" or ended:
        return False
    bills = json.loads(
        (yield _act("It is. Is there an overdue bill?", "get_bills_for_customer", customer_id=case.customer_id))
    )
    overdue = [bill["bill_id"] for bill in bills if bill["status"] == "Overdue"]
    if overdue and "permission to pay" not in case.ticket:
        return False
    for bill_id in overdue:
        request = {"customer_id": case.customer_id, "bill_id": bill_id}
        yield _act(f"{bill_id} is overdue, and the user lets us pay.", "send_payment_request", **request)
        yield _act("Did the request arrive?", "check_payment_request")
        yield _act("It did, so it is paid.", "make_payment")
        bill = json.loads((yield _act("Is the bill paid?", "get_details_by_id", id=bill_id)))
        if bill["status"] != "Paid":
            return False
    yield _act("No bill is overdue, so the line can be resumed.", "resume_line", **case.line)
    yield _act("The phone finds the line after a reboot.", "reboot_device")
    return (yield from _has_service("Is there service now?"))


# ---------------------------------------------------------------------------------------- mobile data


def _speed(thought: str) -> Generator[Act, str, str]:
    return (yield _act(thought, "run_speed_test"))


def _has_data(thought: str) -> Acts:
    return "failed" not in (yield from _speed(thought))


def _data(case: _Case) -> Acts:
    if (yield from _has_data("Does mobile data work?")):
        return True
    if not (yield from _service(case)):
        return False
    if (yield from _has_data("There is service. Does data work?")):
        return True
    network = yield _act("Is data on, and roaming?", "check_network_status")
    if "abroad" in case.ticket:
        if "Data Roaming Enabled: No" in network:
            yield _act("The user is abroad and roaming is off, so it goes on.", "toggle_roaming")
            if (yield from _has_data("Does data work now?")):
                return True
        line = json.loads((yield _act("May the line roam?", "get_details_by_id", id=case.line_id)))
        if not line["roaming_enabled"]:
            yield _act("It may not, so roaming is enabled, which is free.", "enable_roaming", **case.line)
            if (yield from _has_data("Does data work now?")):
                return True
    if "Mobile Data Enabled: No" in network:
        yield _act("Mobile data is off, so it goes on.", "toggle_data")
        if (yield from _has_data("Does data work now?")):
            return True
    usage = json.loads((yield _act("Is the limit used up?", "get_data_usage", **case.line)))
    used, limit, refueled = (float(usage[f"data_{part}_gb"]) for part in ("used", "limit", "refueling"))
    if used < limit + refueled:
        return False
    yield _act("It is, so data is refueled.", "refuel_data", **case.line, gb_amount=REFUEL_GB)
    return (yield from _has_data("Does data work now?"))


def _fast(case: _Case) -> Acts:
    if "Excellent" in (yield from _speed("Is data fast?")):
        return True
    if "ON" in (yield _act("It is slow. Is Data Saver on?", "check_data_restriction_status")):
        yield _act("It is, so it goes off.", "toggle_data_saver_mode")
        if "Excellent" in (yield from _speed("Is it fast now?")):
            return True
    mode = yield _act("Which network does the phone prefer?", "check_network_mode_preference")
    if "4g_5g_preferred" not in mode:
        yield _act("An old one, so it gets the newest.", "set_network_mode_preference", mode="4g_5g_preferred")
        if "Excellent" in (yield from _speed("Is it fast now?")):
            return True
    if "connected. Details" in (yield _act("Is there a VPN?", "check_vpn_status")):
        yield _act("There is, so it is disconnected.", "disconnect_vpn")
        return "Excellent" in (yield from _speed("Is it fast now?"))
    return False


# ---------------------------------------------------------------------------------------- picture messages


def _sends(thought: str) -> Acts:
    return "cannot" not in (yield _act(thought, "can_send_mms"))


def _messages(case: _Case) -> Acts:
    if (yield from _sends("Can the phone send picture messages?")):
        return True
    if not (yield from _service(case)) or not (yield from _data(case)):
        return False
    if (yield from _sends("Service and data work. Are messages sent?")):
        return True
    if "Network Type: 2G" in (yield _act("Which network is it?", "check_network_status")):
        yield _act("2G sends no pictures.", "set_network_mode_preference", mode="4g_5g_preferred")
        if (yield from _sends("Are messages sent now?")):
            return True
    if "ON" in (yield _act("Is Wi-Fi Calling on?", "check_wifi_calling_status")):
        yield _act("It is, so it goes off.", "toggle_wifi_calling")
        if (yield from _sends("Are messages sent now?")):
            return True
    granted = yield _act("Which permissions has messaging?", "check_app_permissions", app_name="messaging")
    missing = [name for name in ("storage", "sms") if name not in granted]
    for name in missing:
        yield _act(f"It needs {name}.", "grant_app_permission", app_name="messaging", permission=name)
    if missing and (yield from _sends("Are messages sent now?")):
        return True
    if "Not Set" in (yield _act("Is there an MMSC URL?", "check_apn_settings")):
        yield _act("There is none, so the APN is reset.", "reset_apn_settings")
        yield _act("The reset takes effect at a reboot.", "reboot_device")
        return (yield from _sends("Are messages sent now?"))
    return False
