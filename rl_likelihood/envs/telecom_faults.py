"""What a task does to the world before it begins: the functions of tau2's initialization_actions."""

from collections.abc import Callable

from rl_likelihood.envs.telecom_agent import Month, disable_roaming, enable_roaming, look_up, new_bill, own_line
from rl_likelihood.envs.telecom_device import permit, set_airplane_mode, set_apn, set_network_mode_preference
from rl_likelihood.envs.telecom_phone import search
from rl_likelihood.envs.telecom_state import PERMISSIONS, TODAY, State
from rl_likelihood.envs.tools import ToolError

_LAST_MONTH = Month("2025-01-01", "2025-01-31", "2025-01-01", "2025-01-15")


def set_user_info(state: State, name: str, phone_number: str) -> None:
    state.phone_number = phone_number
    if state.line is None:
        raise ToolError(f"there is no line with phone_number {phone_number}")


def set_user_location(state: State, abroad: bool) -> None:
    state.abroad = abroad


def _phone(searches: bool = True, **fields) -> Callable[[State], None]:
    """A fault that sets fields of the phone, which then searches for its network or not."""

    def happens(state: State) -> None:
        for name, value in fields.items():
            setattr(state.phone, name, value)
        if searches:
            search(state)

    return happens


def lock_sim_card(state: State, mode: str) -> None:
    if mode not in ("pin", "puk"):
        raise ToolError(f"mode of lock_sim_card is {mode!r}; use 'pin' or 'puk'")
    state.phone.sim_card_status = f"locked_{mode}"
    search(state)


def break_apn_settings(state: State) -> None:
    set_apn(state, apn_name="broken")
    search(state)


def set_wifi_calling(state: State, enabled: bool, mms_over_wifi: bool | None = None) -> None:
    state.phone.wifi_calling_enabled = enabled
    if mms_over_wifi is not None:
        state.phone.wifi_calling_mms_over_wifi = mms_over_wifi


def remove_app_permission(state: State, app_name: str, permission: str) -> None:
    if app_name not in state.phone.apps or permission not in PERMISSIONS:
        raise ToolError(f"the phone has no app {app_name!r} with a permission {permission!r}")
    permit(state, app_name, permission, False)


def set_data_usage(state: State, customer_id: str, line_id: str, data_used_gb: float) -> None:
    own_line(state, customer_id, line_id)
    state.change("lines", line_id, data_used_gb=data_used_gb)


def suspend_line_for_overdue_bill(
    state: State, customer_id: str, line_id: str, new_bill_id: str, contract_ended: bool
) -> None:
    """An unpaid bill of last month suspends the line, whose contract may have ended with that month."""
    line = look_up(state.lines, line_id, "Line")
    if line["status"] != "Active":
        raise ToolError("Line must be active to suspend for unpaid bill")
    customer = look_up(state.customers, customer_id, "Customer")
    if any(look_up(state.bills, key, "Bill")["status"] == "Overdue" for key in customer["bill_ids"]):
        raise ToolError("Customer already has an overdue bill")
    amount = state.plans[line["plan_id"]]["price_per_month"]
    new_bill(state, customer_id, new_bill_id, "Overdue", _LAST_MONTH)
    item = {"description": f"Charge for line {line_id}", "amount": amount, "date": TODAY, "item_type": "Charge"}
    state.change("bills", new_bill_id, total_due=amount, line_items=[item])
    state.change("lines", line_id, status="Suspended", suspension_start_date=TODAY)
    if contract_ended:
        state.change("lines", line_id, contract_end_date=_LAST_MONTH.period_end)


FAULTS: dict[str, Callable] = {
    "set_user_info": set_user_info,
    "set_user_location": set_user_location,
    "simulate_network_search": search,
    "turn_airplane_mode_on": lambda state: set_airplane_mode(state, True),
    "turn_data_off": _phone(data_enabled=False),
    "turn_roaming_on": _phone(roaming_enabled=True),
    "turn_roaming_off": _phone(roaming_enabled=False),
    "turn_data_saver_mode_on": _phone(searches=False, data_saver_mode=True),
    "unseat_sim_card": _phone(sim_card_missing=True),
    "lock_sim_card": lock_sim_card,
    "break_apn_settings": break_apn_settings,
    "break_apn_mms_setting": lambda state: set_apn(state, mmsc_url=None),
    "break_vpn": _phone(searches=False, vpn_connected=True, vpn_server_performance="poor"),
    "set_wifi_calling": set_wifi_calling,
    "remove_app_permission": remove_app_permission,
    "set_data_usage": set_data_usage,
    "suspend_line_for_overdue_bill": suspend_line_for_overdue_bill,
    "set_network_mode_preference": set_network_mode_preference,
    "enable_roaming": enable_roaming,
    "disable_roaming": disable_roaming,
}
