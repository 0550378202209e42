"""The telecom world: how the phone works, what tools reply, what is asserted, and tau2's own tasks.

Expected numbers are tau2's (bench/compare_tau2.py compares every tool with it letter for letter).
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from configs.telecom import get_config
from rl_likelihood.data.tokenizer import load_tokenizer
from rl_likelihood.envs import telecom, telecom_agent, telecom_device
from rl_likelihood.envs.telecom import Telecom, system_prompt
from rl_likelihood.envs.telecom_phone import band, search, speed
from rl_likelihood.envs.telecom_state import make_world, read_world
from rl_likelihood.envs.tools import Call
from rl_likelihood.errors import UserError
from rl_likelihood.weights.assets import cache_path
from tests.envs.small_world import CARRIER, LINE, REAL, USER, needs_tau2, task, world


def begin(*faults):
    return telecom.start(world(), task(*faults))


def says(state, name, **arguments) -> str:
    return telecom.call(state, name, arguments)


def test_there_are_13_tools_of_the_agent_and_30_of_the_phone():
    assert (len(telecom_agent.TOOLS), len(telecom_device.TOOLS), len(telecom.TOOLS)) == (13, 30, 43)


@pytest.mark.parametrize(
    "technology, signal, vpn, saver, mbps, name",
    [
        ("5G", "good", False, False, 220.0, "Excellent"),
        ("5G", "excellent", False, False, 275.0, "Excellent"),
        ("4G", "excellent", False, False, 55.0, "Good"),
        ("5G", "good", True, False, 22.0, "Fair"),
        ("5G", "good", False, True, 44.0, "Good"),
        ("3G", "good", False, False, 2.4, "Poor"),
        ("2G", "poor", False, False, 0.05, "Very Poor"),
    ],
)
def test_speed_is_the_middle_of_the_range_times_signal_and_factors(technology, signal, vpn, saver, mbps, name):
    state = begin()
    phone = state.phone
    phone.network_technology_connected, phone.network_signal_strength = technology, signal
    phone.vpn_connected, phone.vpn_server_performance, phone.data_saver_mode = vpn, "poor", saver
    assert speed(state) == mbps
    assert says(state, "run_speed_test").startswith(f"Speed Test Result: {mbps:.2f} Mbps ({name}). ")


def test_bands_begin_at_1_5_25_and_100():
    edges = [
        (0.99, "Very Poor"),
        (1, "Poor"),
        (4.99, "Poor"),
        (5, "Fair"),
        (25, "Good"),
        (99.99, "Good"),
        (100, "Excellent"),
    ]
    assert [band(mbps)[0] for mbps, _ in edges] == [name for _, name in edges]


@pytest.mark.parametrize(
    "faults",
    [
        [("turn_airplane_mode_on", {})],
        [("unseat_sim_card", {})],
        [("lock_sim_card", {"mode": "puk"})],
        [("break_apn_settings", {})],
        [("turn_data_off", {})],
        [("set_data_usage", {**LINE, "data_used_gb": 3.0})],
        [("set_user_location", {"abroad": True}), ("turn_roaming_on", {})],
        [("set_user_location", {"abroad": True}), ("turn_roaming_off", {}), ("enable_roaming", LINE)],
        [("suspend_line_for_overdue_bill", {**LINE, "new_bill_id": "B2", "contract_ended": False}),
         ("simulate_network_search", {})],
    ],
)  # fmt: skip
def test_each_fault_alone_stops_mobile_data(faults):
    assert says(begin(), "run_speed_test").startswith("Speed Test Result")
    assert says(begin(*faults), "run_speed_test") == "Speed test failed: No Connection."
    assert says(begin(*faults), "can_send_mms") == "Your messaging app cannot send MMS messages."


@pytest.mark.parametrize(
    "fault, repair",
    [
        (("set_network_mode_preference", {"mode": "2g_only"}), ("set_network_mode_preference", {"mode": "3g_only"})),
        (("set_wifi_calling", {"enabled": True, "mms_over_wifi": True}), ("toggle_wifi_calling", {})),
        (("break_apn_mms_setting", {}), ("set_apn_settings", {"apn_settings": {}})),
        (("remove_app_permission", {"app_name": "messaging", "permission": "sms"}),
         ("grant_app_permission", {"app_name": "messaging", "permission": "SMS"})),
    ],
)  # fmt: skip
def test_each_fault_alone_stops_picture_messages_until_it_is_repaired(fault, repair):
    state = begin(fault)
    assert says(state, "can_send_mms") == "Your messaging app cannot send MMS messages."
    telecom.call(state, *repair)
    assert says(state, "can_send_mms") == "Your messaging app can send MMS messages."


def test_the_apn_is_reset_by_the_next_reboot():
    state = begin(("break_apn_settings", {}))
    assert "No Signal" in says(state, "reset_apn_settings")
    assert says(state, "reboot_device").startswith(
        "Resetting APN settings...\nRestarting network services...\nStatus Bar: 📶⁴"
    )
    assert "Resetting" not in says(state, "reboot_device")


def test_a_resumed_line_has_service_after_a_reboot_and_its_bill_is_paid_by_the_user():
    state = begin(
        ("suspend_line_for_overdue_bill", {**LINE, "new_bill_id": "B2", "contract_ended": True}),
        ("simulate_network_search", {}),
    )
    assert state.line["contract_end_date"] == "2025-01-31"
    assert says(state, "make_payment") == "You do not have a payment request."
    assert says(state, "send_payment_request", customer_id="C1", bill_id="B2").endswith("for bill B2")
    assert says(state, "send_payment_request", customer_id="C1", bill_id="B1").startswith("Error: A bill is already")
    assert says(state, "check_payment_request") == "You have a payment request for bill B2 of 12.5 USD."
    assert says(state, "make_payment") == "Payment of 12.5 USD has been made for bill B2."
    assert json.loads(says(state, "get_details_by_id", id="B2"))["status"] == "Paid"
    assert json.loads(says(state, "resume_line", **LINE))["line"]["status"] == "Active"
    assert "No Signal" in says(state, "check_status_bar")
    assert "📶⁴ Excellent | 5G" in says(state, "reboot_device")


def test_refueling_goes_on_the_draft_bill_which_is_made_where_there_is_none():
    state = begin(("set_data_usage", {**LINE, "data_used_gb": 3.5}))
    assert json.loads(says(state, "refuel_data", **LINE, gb_amount=2))["charge"] == "3.0"
    draft = json.loads(says(state, "get_bills_for_customer", customer_id="C1", limit=1))[0]
    assert (draft["status"], draft["total_due"], draft["period_start"]) == ("Draft", 3.0, "2025-03-01")
    says(state, "refuel_data", **LINE, gb_amount=1.0)
    assert json.loads(says(state, "get_details_by_id", id=draft["bill_id"]))["total_due"] == 4.5
    assert says(state, "run_speed_test").startswith("Speed Test Result")
    assert says(state, "refuel_data", **LINE, gb_amount=0) == "Error: Refuel amount must be positive"


def test_records_are_printed_in_full_with_times_and_defaults():
    state = begin()
    device = json.loads(says(state, "get_details_by_id", id="D1"))
    assert (device["activation_date"], device["imei"], device["activated"]) == ("2024-05-01 08:00:00", None, False)
    assert json.loads(says(state, "get_data_usage", **LINE))["data_limit_gb"] == "3.0"
    assert json.loads(says(state, "get_customer_by_phone", phone_number="2-2"))["customer_id"] == "C1"
    assert says(state, "get_details_by_id", id="X") == "Error: Unknown ID format or type: X"
    assert says(state, "get_customer_by_name", full_name="ada low", dob="1990-01-03") == "[]"


def test_a_vpn_server_that_is_slow_stays_slow():
    state = begin(("break_vpn", {}))
    assert "PerformanceLevel.POOR: 'poor'" in says(state, "check_vpn_status")
    assert says(state, "toggle_airplane_mode") == "Airplane Mode is now ON.\nStatus Bar: ✈️ Airplane Mode | 🔋 80%"
    assert says(state, "check_vpn_status") == "VPN is turned OFF."
    says(state, "connect_vpn")
    assert "'poor'" in says(state, "check_vpn_status")


def test_bad_calls_are_replied_to_and_change_nothing():
    state, before = begin(), begin()
    for name, arguments in (
        ("set_user_info", {"name": "x", "phone_number": "1-1"}),  # a fault, no tool
        ("make_payment", {"amount": 1}),
        ("refuel_data", LINE),
        ("refuel_data", {**LINE, "gb_amount": "2"}),
        ("refuel_data", {**LINE, "gb_amount": 1e300}),
        ("refuel_data", {**LINE, "gb_amount": True}),
        ("get_bills_for_customer", {"customer_id": "C1", "limit": 1.5}),
        ("set_apn_settings", {"apn_settings": {"apn_name": "other"}}),
        ("set_apn_settings", {"apn_settings": {"mmsc_url": 5}}),
        ("suspend_line", {**LINE, "line_id": "L9", "reason": ""}),
    ):
        assert telecom.call(state, name, arguments).startswith("Error: "), name
    assert state == before


def test_conversations_do_not_touch_each_other_or_the_world():
    start, job = world(), task(("set_data_usage", {**LINE, "data_used_gb": 3.5}))
    state = telecom.start(start, job)
    for name, arguments in (
        ("refuel_data", {**LINE, "gb_amount": 2.0}),
        ("enable_roaming", LINE),
        ("grant_app_permission", {"app_name": "browser", "permission": "sms"}),
        ("reset_apn_settings", {}),
        ("toggle_data", {}),
    ):
        assert not telecom.call(state, name, arguments).startswith("Error")
    assert telecom.start(start, job) == telecom.start(world(), job) != state


def test_reward_is_the_product_of_its_basis_and_needs_an_end():
    assertion = ("assert_service_status", {"expected_status": "no_service"})
    job = task(
        ("unseat_sim_card", {}),
        assertions=[assertion],
        actions=[("transfer_to_human_agents", {"summary": "x"}, [])],
        basis=("ENV_ASSERTION", "ACTION"),
    )
    state, transfer = telecom.start(world(), job), [Call("transfer_to_human_agents", {"summary": "other words"})]
    assert telecom.reward(job, state, transfer, ended=True) == 1.0
    assert telecom.reward(job, state, transfer, ended=False) == 0.0
    assert telecom.reward(job, state, [], ended=True) == 0.0
    says(state, "reseat_sim_card")
    assert telecom.reward(job, state, transfer, ended=True) == 0.0


def test_a_reference_call_is_matched_by_the_arguments_that_the_made_call_has():
    job = task(actions=[("refuel_data", {**LINE, "gb_amount": 2.0}, None)], basis=("ACTION",))
    full = {**LINE, "gb_amount": 2.0}
    for arguments, right in (
        (full, True),
        ({**full, "gb_amount": 2}, True),
        (LINE, True),  # tau2 asks for nothing that is left out
        ({**full, "gb_amount": 1.0}, False),
        ({**full, "colour": "red"}, False),
    ):
        assert telecom.actions_made(job, [Call("refuel_data", arguments)]) is right, arguments


def test_what_the_files_lack_is_named():
    broken = json.loads(json.dumps(CARRIER))
    broken["lines"][0]["plan_id"] = "P7"
    with pytest.raises(UserError, match="line L1 .*P7"):
        make_world(broken, USER)
    del broken["lines"][0]["plan_id"]
    with pytest.raises(UserError, match="record of lines has no plan_id"):
        make_world(broken, USER)
    with pytest.raises(UserError, match="user_db.toml: 'surroundings'"):
        make_world(CARRIER, {**USER, "surroundings": {}})
    with pytest.raises(UserError, match="names explode"):
        task(("explode", {}))
    with pytest.raises(UserError, match="phone_number 7-7"):
        telecom.start(world(), task(("set_user_info", {"name": "x", "phone_number": "7-7"})))
    with pytest.raises(UserError, match="tasks.json .*'ticket'"):
        telecom.make_task({"id": "x", "evaluation_criteria": {}})


def test_a_search_finds_5g_again():
    state = begin()
    for mode, technology in (("4g_only", "4G"), ("3g_only", "3G"), ("2g_only", "2G"), ("4g_5g_preferred", "5G")):
        says(state, "set_network_mode_preference", mode=mode)
        assert state.phone.network_technology_connected == technology
    assert "'6g' is not a valid option" in says(state, "set_network_mode_preference", mode="6g")
    before = json.dumps(state.phone.__dict__)
    search(state)
    assert json.dumps(state.phone.__dict__) == before


# ---------------------------------------------------------------------------------------- tau2's own tasks


@pytest.fixture(scope="module")
def tau2():
    return read_world(REAL), telecom.read_tasks(REAL), telecom.read_json(REAL / "split_tasks.json")


def replayed(start, job, calls):
    state = telecom.start(start, job)
    return state, [telecom.call(state, *call) for call in calls]


@needs_tau2
def test_every_reference_replay_passes_without_an_error(tau2):
    start, tasks, _ = tau2
    assert len(tasks) == 2285
    for job in tasks.values():
        state, replies = replayed(start, job, job.reference)
        assert telecom.reward(job, state, job.reference, ended=True) == 1.0, job.id
        assert not any(reply.startswith("Error") for reply in replies), job.id


@needs_tau2
def test_without_calls_assertions_hold_exactly_where_the_basis_has_action(tau2):
    start, tasks, splits = tau2
    holds = {job.id for job in tasks.values() if telecom.assertions_hold(telecom.start(start, job), job)}
    assert holds == {job.id for job in tasks.values() if "ACTION" in job.basis}
    assert len(holds) == 32 and len(holds & set(splits["base"])) == 20
    assert not any(telecom.reward(job, telecom.start(start, job), [], ended=True) for job in tasks.values())


@needs_tau2
def test_order_matters_in_29_of_the_114_base_tasks(tau2):
    start, tasks, splits = tau2
    base = [tasks[name] for name in splits["base"]]
    assert (len(splits["train"]), len(splits["test"]), len(base)) == (74, 40, 114)
    reversed_ones = [(job, job.reference[::-1]) for job in base]
    passed = [telecom.reward(job, replayed(start, job, calls)[0], calls, ended=True) for job, calls in reversed_ones]
    assert sum(passed) == 85


@needs_tau2
def test_most_alternatives_solve_the_task_when_made_next(tau2):
    start, tasks, splits = tau2
    passed = []
    for job in [tasks[name] for name in splits["base"]]:
        for row, other in itertools.combinations(range(len(job.reference)), 2):
            calls = list(job.reference)
            calls.insert(row, calls.pop(other))
            passed.append(telecom.reward(job, replayed(start, job, calls)[0], calls, ended=True))
    assert (sum(passed), len(passed)) == (1265, 1357)


@needs_tau2
def test_no_test_task_has_the_ticket_and_faults_of_a_training_task(tau2):
    _, tasks, splits = tau2
    problems = {name: (job.ticket, *sorted(map(str, job.faults))) for name, job in tasks.items()}
    trained = {problem for name, problem in problems.items() if name not in splits["test"]}
    assert not trained & {problems[name] for name in splits["test"]}
    assert len({job.ticket for job in tasks.values()}) == 5


@needs_tau2
def test_no_reference_call_can_be_left_out_at_the_end(tau2):
    start, tasks, _ = tau2
    for job in [job for job in list(tasks.values())[::45] if "ACTION" not in job.basis]:
        state, _ = replayed(start, job, job.reference[:-1])
        assert telecom.reward(job, state, job.reference[:-1], ended=True) == 0.0, job.id


@needs_tau2
def test_the_config_cuts_no_reference_of_a_base_task(tau2):
    if not cache_path("smollm2-135m-instruct").is_file():
        pytest.skip("SmolLM2 is not in the cache: python -m rl_likelihood.weights.assets smollm2-135m-instruct")
    encode = load_tokenizer(cache_path("smollm2-135m-instruct")).encode
    environment = Telecom(*tau2[:2], system="")  # in hermes, the longest style
    references = [environment.start({"task": name}).reference for name in tau2[2]["base"]]
    assert max(len(encode(text)) for text in references) < get_config().prompt.max_answer


def test_the_document_has_both_prompts():
    text = (Path(__file__).parents[2] / "docs" / "telecom_prompts.md").read_text()
    full = Path(telecom.__file__).parent / "prompts" / "full.txt"
    assert system_prompt("compact", "hermes") in text
    assert full.read_text().replace("{pace}", "one call at a time").strip() in text
