"""The scripted expert: it reads before it repairs, and solves every task that there is. Rows cut from conversations."""

from __future__ import annotations

import json

import pytest

from rl_likelihood.datasets.tau2_telecom import expert_turns, question, reference_turns, whole
from rl_likelihood.envs import telecom
from rl_likelihood.envs.calls import text_of
from rl_likelihood.envs.telecom_expert import solve
from rl_likelihood.envs.telecom_state import read_world
from tests.envs.small_world import LINE, REAL, needs_tau2, task, world

MMS = "Cannot send MMS messages. Customer name: Ada Low, phone number: 2-2, current location: abroad in France."
DATA = "Problems with their mobile data. Customer name: Ada Low, phone number: 2-2, current location: abroad in France."
SUSPENDED = ("suspend_line_for_overdue_bill", {**LINE, "new_bill_id": "B2", "contract_ended": False})
ENDED = ("suspend_line_for_overdue_bill", {**LINE, "new_bill_id": "B2", "contract_ended": True})
SEARCH = ("simulate_network_search", {})


@pytest.mark.parametrize(
    "ticket, faults, assertion",
    [
        ("", [("turn_airplane_mode_on", {}), ("unseat_sim_card", {}), ("break_apn_settings", {})], "service"),
        ("", [SUSPENDED, SEARCH], "service"),
        (DATA, [("set_user_location", {"abroad": True}), ("turn_data_off", {}), ("turn_data_saver_mode_on", {}),
                ("break_vpn", {}), ("set_data_usage", {**LINE, "data_used_gb": 3.1})], "speed"),
        (MMS, [("break_apn_mms_setting", {}), ("set_wifi_calling", {"enabled": True, "mms_over_wifi": True}),
               ("set_network_mode_preference", {"mode": "2g_only"}),
               ("remove_app_permission", {"app_name": "messaging", "permission": "storage"})], "mms"),
    ],
)  # fmt: skip
def test_the_expert_repairs_several_faults_at_once(ticket, faults, assertion):
    assertions = {
        "service": ("assert_service_status", {"expected_status": "connected"}),
        "speed": ("assert_internet_speed", {"expected_speed": 200, "expected_desc": "excellent"}),
        "mms": ("assert_can_send_mms", {"expected_status": True}),
    }
    job = task(*faults, assertions=[assertions[assertion]], ticket=ticket)
    assert not telecom.assertions_hold(telecom.start(world(), job), job)
    turns, state = solve(world(), job)
    assert telecom.reward(job, state, [turn.act.call for turn in turns], ended=True) == 1.0
    assert not any(turn.reply.startswith("Error") for turn in turns)


@pytest.mark.parametrize("fault", [("lock_sim_card", {"mode": "pin"}), ENDED])
def test_what_no_tool_repairs_goes_to_a_human(fault):
    turns, _ = solve(world(), task(fault, SEARCH))
    assert turns[-1].act.call.name == "transfer_to_human_agents"


def test_a_bill_is_paid_only_if_the_ticket_allows_it():
    job = task(SUSPENDED, SEARCH, ticket="No service. Customer name: Ada Low, phone number: 2-2.")
    turns, state = solve(world(), job)
    assert turns[-1].act.call.name == "transfer_to_human_agents" and state.bills["B2"]["status"] == "Overdue"


def test_rows_hold_the_real_replies_and_what_remains():
    actions = [("reseat_sim_card", {}, None), ("refuel_data", {**LINE, "gb_amount": 2.0}, None)]
    job = task(("unseat_sim_card", {}), actions=actions)
    first, second = reference_turns(world(), job)
    texts = [text_of(call) for call in job.reference]
    assert first.history == () and (first.answer, first.alternatives) == (texts[0], (texts[1],))
    assert (
        second.answer
        == '{"arguments": {"customer_id": "C1", "gb_amount": 2.0, "line_id": "L2"}, "name": "refuel_data"}'
    )
    assert second.alternatives == ()
    assert second.history == ((texts[0], telecom.call(telecom.start(world(), job), "reseat_sim_card", {})),)
    asked = question("System.", job, second, "What next?")
    assert job.ticket in asked and second.history[0][1] in asked and asked.endswith("What next?")
    assert second.answer not in asked
    (row,) = whole(world(), job)
    assert row.alternatives == ()
    assert [telecom.Call(**call) for call in json.loads(row.answer)] == job.reference


def test_rows_of_the_expert_have_thoughts_no_alternatives_and_end_with_done():
    rows = expert_turns(world(), task(("unseat_sim_card", {})))
    assert len(rows) > 2 and not any(row.alternatives for row in rows)
    assert all(row.thought for row in rows) and '"done"' in rows[-1].answer
    assert '"done"' not in expert_turns(world(), task(ENDED, SEARCH))[-1].answer


@needs_tau2
def test_the_expert_scores_1_on_all_of_tau2():
    start, tasks = read_world(REAL), telecom.read_tasks(REAL)
    for job in tasks.values():
        turns, state = solve(start, job)
        assert telecom.reward(job, state, [turn.act.call for turn in turns], ended=True) == 1.0, job.id
        assert not any(turn.reply.startswith("Error") for turn in turns), job.id
