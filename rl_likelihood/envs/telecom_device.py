"""The 30 tools of the user's phone. Replies are tau2's, letter for letter."""

from rl_likelihood.envs.telecom_agent import awaiting_payment, customer_of
from rl_likelihood.envs.telecom_phone import MODES, band, lose_wifi, mms_works, search, sim, speed, status_bar
from rl_likelihood.envs.telecom_state import APN, PERMISSIONS, State
from rl_likelihood.envs.tools import Parameter, Tool, ToolError, table

_SIM = {
    "active": "Your SIM card is active and working.",
    "missing": "No SIM card detected in the phone.",
    "locked_pin": "The SIM card is locked with a PIN code.",
    "locked_puk": "The SIM card is locked with a PUK code.",
}
_APN_TYPES = {
    "apn_name": str,
    "mmsc_url": str,
    "mms_apn": str,
    "mms_proxy": str,
    "mms_port": int,
    "reset_at_reboot": bool,
}


def _with_bar(state: State, text: str) -> str:
    return f"{text}\nStatus Bar: {status_bar(state.phone)}"


def _on(value: bool) -> str:
    return "ON" if value else "OFF"


def _yes(value: bool) -> str:
    return "Yes" if value else "No"


# ---------------------------------------------------------------------------------------- reading


def check_status_bar(state: State) -> str:
    return f"Status Bar: {status_bar(state.phone)}"


def check_network_status(state: State) -> str:
    phone = state.phone
    lines = [
        f"Airplane Mode: {_on(phone.airplane_mode)}",
        f"SIM Card Status: {sim(phone)}",
        f"Cellular Connection: {phone.network_connection_status}",
        f"Cellular Signal: {phone.network_signal_strength}",
        f"Cellular Network Type: {phone.network_technology_connected}",
        f"Mobile Data Enabled: {_yes(phone.data_enabled)}",
        f"Data Roaming Enabled: {_yes(phone.roaming_enabled)}",
        f"Wi-Fi Radio: {_on(phone.wifi_enabled)}",
        f"Wi-Fi Connected: {_yes(phone.wifi_connected)}",
    ]
    if phone.wifi_connected:
        lines.append(f"Connected Wi-Fi Network: {phone.wifi_ssid}")
    return "\n".join(lines)


def check_network_mode_preference(state: State) -> str:
    return f"Network Mode Preference: {state.phone.network_mode_preference}"


def run_speed_test(state: State) -> str:
    mbps = speed(state)
    if mbps is None:
        return "Speed test failed: No Connection."
    name, advice = band(mbps)
    return f"Speed Test Result: {mbps:.2f} Mbps ({name}). {advice}"


def check_sim_status(state: State) -> str:
    return _SIM[sim(state.phone)]


def check_data_restriction_status(state: State) -> str:
    limits = " (limits data usage)" if state.phone.data_saver_mode else ""
    return f"Data Saver mode is {_on(state.phone.data_saver_mode)}{limits}."


def check_apn_settings(state: State) -> str:
    apn = state.phone.active_apn_settings
    return (
        f"Current APN Name: {apn['apn_name']}\nMMSC URL (for picture messages): {apn['mmsc_url'] or 'Not Set'}\n"
        "(These are technical settings, usually best left unchanged.)"
    )


def check_wifi_status(state: State) -> str:
    phone = state.phone
    if not phone.wifi_enabled:
        return "Wi-Fi is turned OFF."
    if not phone.wifi_connected:
        return "Wi-Fi is ON but not connected to any network."
    return f"Wi-Fi is ON and connected to '{phone.wifi_ssid}'. Signal strength: {phone.wifi_signal_strength}."


def check_wifi_calling_status(state: State) -> str:
    return f"Wi-Fi Calling is currently turned {_on(state.phone.wifi_calling_enabled)}."


def check_vpn_status(state: State) -> str:
    phone = state.phone
    if phone.vpn_connected:
        level = phone.vpn_server_performance
        server = "'server_address': '192.168.1.1', 'protocol': 'OpenVPN'"
        performance = f"'server_performance': <PerformanceLevel.{level.upper()}: '{level}'>"
        return f"VPN is ON and connected. Details: {{{server}, {performance}}}"
    if phone.vpn_enabled_setting:
        return "VPN is turned ON in settings, but currently not connected."
    return "VPN is turned OFF."


def check_installed_apps(state: State) -> str:
    return f"The following apps are installed on the phone: {', '.join(state.phone.apps)}"


def check_app_status(state: State, app_name: str) -> str:
    if app_name not in state.phone.apps:
        return f"App '{app_name}' not found on this phone."
    granted = _granted(state, app_name)
    head = f"Status for App: {app_name}"
    if not granted:
        return f"{head}\n - Permissions: None granted."
    return "\n".join([head, " - Permissions Granted:", *(f"   - {permission}" for permission in granted)])


def check_app_permissions(state: State, app_name: str) -> str:
    if app_name not in state.phone.apps:
        return f"App '{app_name}' not found on this phone."
    granted = _granted(state, app_name)
    if not granted:
        return f"App '{app_name}' currently has no permissions granted."
    return f"App '{app_name}' has permission for: {', '.join(granted)}."


def _granted(state: State, app_name: str) -> list[str]:
    return [permission for permission, granted in state.phone.apps[app_name].items() if granted]


def can_send_mms(state: State) -> str:
    return f"Your messaging app {'can' if mms_works(state) else 'cannot'} send MMS messages."


def check_payment_request(state: State) -> str:
    bill = _requested(state)
    if bill is None:
        return "No payment request has been made."
    return f"You have a payment request for bill {bill['bill_id']} of {bill['total_due']} USD."


def _requested(state: State) -> dict | None:
    """The bill that the user was asked to pay."""
    if state.line is None:
        return None
    return next(iter(awaiting_payment(state, customer_of(state, state.phone_number))), None)


# ---------------------------------------------------------------------------------------- changing


def set_network_mode_preference(state: State, mode: str) -> str:
    if mode not in MODES:
        problem = f"Failed to set network mode: '{mode}' is not a valid option."
        return _with_bar(state, f"{problem} Please use one of: {', '.join(MODES)}")
    state.phone.network_mode_preference = mode
    search(state)
    return _with_bar(state, f"Preferred Network Mode set to: {mode}")


def toggle_airplane_mode(state: State) -> str:
    set_airplane_mode(state, not state.phone.airplane_mode)
    return _with_bar(state, f"Airplane Mode is now {_on(state.phone.airplane_mode)}.")


def set_airplane_mode(state: State, on: bool) -> None:
    phone = state.phone
    phone.airplane_mode = on
    if on or phone.wifi_enabled:
        lose_wifi(phone)
    if on:
        phone.vpn_connected = False
    search(state)


def reseat_sim_card(state: State) -> str:
    state.phone.sim_card_missing = False
    search(state)
    return _with_bar(state, "SIM card re-seated successfully.")


def toggle_data(state: State) -> str:
    state.phone.data_enabled = not state.phone.data_enabled
    search(state)
    return _with_bar(state, f"Mobile Data is now {_on(state.phone.data_enabled)}.")


def toggle_roaming(state: State) -> str:
    state.phone.roaming_enabled = not state.phone.roaming_enabled
    search(state)
    return _with_bar(state, f"Data Roaming is now {_on(state.phone.roaming_enabled)}.")


def toggle_data_saver_mode(state: State) -> str:
    state.phone.data_saver_mode = not state.phone.data_saver_mode
    return _with_bar(state, f"Data Saver Mode is now {_on(state.phone.data_saver_mode)}.")


def set_apn_settings(state: State, apn_settings: dict) -> str:
    for field, value in apn_settings.items():
        if field not in _APN_TYPES:
            raise ToolError(f"apn_settings has no field {field!r}; its fields are {', '.join(_APN_TYPES)}")
        optional = value is None and field not in ("apn_name", "reset_at_reboot")
        if not optional and type(value) is not _APN_TYPES[field]:
            raise ToolError(f"{field} of apn_settings must be of type {_APN_TYPES[field].__name__}")
    name = apn_settings.get("apn_name", APN["apn_name"])
    if name not in ("internet", "broken"):
        raise ToolError(f"apn_name of apn_settings is {name!r}; use 'internet' or 'broken'")
    state.phone.active_apn_settings = {**APN, **apn_settings}
    search(state)
    return _with_bar(state, f"APN settings set to: {name}")


def reset_apn_settings(state: State) -> str:
    set_apn(state, reset_at_reboot=True)
    search(state)
    return _with_bar(state, "APN settings will reset at reboot.")


def set_apn(state: State, **fields) -> None:
    state.phone.active_apn_settings = {**state.phone.active_apn_settings, **fields}


def toggle_wifi(state: State) -> str:
    phone = state.phone
    if phone.airplane_mode:
        return _with_bar(state, "Cannot change Wi-Fi settings while Airplane Mode is ON.")
    phone.wifi_enabled = not phone.wifi_enabled
    if not phone.wifi_enabled:
        lose_wifi(phone)
    return _with_bar(state, f"Wi-Fi is now {_on(phone.wifi_enabled)}.")


def toggle_wifi_calling(state: State) -> str:
    state.phone.wifi_calling_enabled = not state.phone.wifi_calling_enabled
    return _with_bar(state, f"Wi-Fi Calling is now {_on(state.phone.wifi_calling_enabled)}.")


def connect_vpn(state: State) -> str:
    if state.phone.vpn_connected:
        return "VPN already connected."
    state.phone.vpn_connected = True
    return _with_bar(state, "VPN connected successfully.")


def disconnect_vpn(state: State) -> str:
    if not state.phone.vpn_connected:
        return _with_bar(state, "No active VPN connection to disconnect.")
    state.phone.vpn_connected = False
    return _with_bar(state, "VPN disconnected successfully.")


def grant_app_permission(state: State, app_name: str, permission: str) -> str:
    permission = permission.lower()
    if app_name not in state.phone.apps:
        return _with_bar(state, f"Error. App '{app_name}' not found. Cannot grant permission.")
    if permission not in PERMISSIONS:
        problem = f"Error. Permission '{permission}' not tracked for app '{app_name}'"
        return _with_bar(state, f"{problem}, available permissions: {list(PERMISSIONS)}")
    permit(state, app_name, permission, True)
    return _with_bar(state, f"Success. Permission '{permission}' granted to app '{app_name}'.")


def permit(state: State, app_name: str, permission: str, granted: bool) -> None:
    apps = state.phone.apps
    state.phone.apps = {**apps, app_name: {**apps[app_name], permission: granted}}


def reboot_device(state: State) -> str:
    lines = []
    if state.phone.active_apn_settings["reset_at_reboot"]:
        lines.append("Resetting APN settings...")
        state.phone.active_apn_settings = dict(APN)
    search(state)
    return _with_bar(state, "\n".join([*lines, "Restarting network services..."]))


def make_payment(state: State) -> str:
    bill = _requested(state)
    if bill is None:
        return "You do not have a payment request."
    state.change("bills", bill["bill_id"], status="Paid")
    return f"Payment of {bill['total_due']} USD has been made for bill {bill['bill_id']}."


# ---------------------------------------------------------------------------------------- the table

_APP = Parameter("app_name", "string", "The app, messaging for instance.")
_PERMISSION = Parameter("permission", "string", "sms, storage, phone or network.")
_MODE = Parameter("mode", "string", f"{', '.join(MODES)}.")
_APN_SETTINGS = Parameter("apn_settings", "object", f"Some of {', '.join(_APN_TYPES)}; the others get their defaults.")

TOOLS = table(
    (
        Tool(check_status_bar, "See the icons at the top of the screen: signal, data, Wi-Fi, VPN, battery."),
        Tool(check_network_status, "See airplane mode, SIM, connection, signal, data, roaming and Wi-Fi."),
        Tool(check_network_mode_preference, "See which kind of network the phone prefers."),
        Tool(set_network_mode_preference, "Choose which kind of network the phone prefers.", (_MODE,)),
        Tool(run_speed_test, "Measure the speed of mobile data."),
        Tool(toggle_airplane_mode, "Switch airplane mode on or off."),
        Tool(check_sim_status, "See whether the SIM card is active, missing or locked."),
        Tool(reseat_sim_card, "Take the SIM card out and put it in again."),
        Tool(toggle_data, "Switch mobile data on or off."),
        Tool(toggle_roaming, "Switch data roaming on or off."),
        Tool(check_data_restriction_status, "See whether Data Saver is on."),
        Tool(toggle_data_saver_mode, "Switch Data Saver on or off."),
        Tool(check_apn_settings, "See the APN name and the MMSC URL."),
        Tool(set_apn_settings, "Set the APN.", (_APN_SETTINGS,)),
        Tool(reset_apn_settings, "Reset the APN; it takes effect at the next reboot."),
        Tool(check_wifi_status, "See whether Wi-Fi is on and connected."),
        Tool(toggle_wifi, "Switch Wi-Fi on or off."),
        Tool(check_wifi_calling_status, "See whether Wi-Fi Calling is on."),
        Tool(toggle_wifi_calling, "Switch Wi-Fi Calling on or off."),
        Tool(check_vpn_status, "See whether a VPN is connected, and how well its server performs."),
        Tool(connect_vpn, "Connect the VPN."),
        Tool(disconnect_vpn, "Disconnect the VPN."),
        Tool(check_installed_apps, "List the apps."),
        Tool(check_app_status, "See an app's status and permissions.", (_APP,)),
        Tool(check_app_permissions, "See which permissions an app has.", (_APP,)),
        Tool(grant_app_permission, "Give an app a permission.", (_APP, _PERMISSION)),
        Tool(can_send_mms, "See whether the messaging app can send picture messages."),
        Tool(reboot_device, "Restart the phone."),
        Tool(check_payment_request, "See whether there is a bill to pay."),
        Tool(make_payment, "Pay the bill of the payment request."),
    )
)
