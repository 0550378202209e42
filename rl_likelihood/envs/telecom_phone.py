"""How the phone of a telecom task works: its network search, its data, its speed, its picture messages, its icons."""

from rl_likelihood.envs.telecom_state import Phone, State

# What the network offers where the user is.
_SIGNAL = {"2G": "poor", "3G": "fair", "4G": "good", "5G": "excellent"}
MODES = {"4g_5g_preferred": "5G", "4g_only": "4G", "3g_only": "3G", "2g_only": "2G"}
_BARS = {
    "none": "📵 No Signal",
    "poor": "📶¹ Poor",
    "fair": "📶² Fair",
    "good": "📶³ Good",
    "excellent": "📶⁴ Excellent",
}
_MBPS = {"2G": (0.1, 0.4), "3G": (1.0, 5.0), "4G": (10.0, 100.0), "5G": (50.0, 500.0)}
_STRENGTH = {"none": 0.0, "poor": 0.2, "fair": 0.5, "good": 0.8, "excellent": 1.0}
# (speed below which it is called so, name, what it is good for)
_BANDS = (
    (1, "Very Poor", "Connection is very slow. Basic web browsing might be difficult."),
    (5, "Poor", "Connection is slow. Web browsing may be sluggish, streaming difficult."),
    (25, "Fair", "Connection is okay for web browsing and some standard definition streaming."),
    (100, "Good", "Connection is good for most activities, including HD streaming."),
    (float("inf"), "Excellent", "Connection is very fast."),
)
_VPN_FACTOR, _DATA_SAVER_FACTOR = 0.1, 0.2


def search(state: State) -> None:
    """Look for a network: what the phone is connected to after anything that touches the radio."""
    phone = state.phone
    lost = (
        sim(phone) != "active"
        or phone.airplane_mode
        or phone.active_apn_settings["apn_name"] == "broken"
        or not state.line_active
    )
    phone.network_connection_status = "no_service" if lost else "connected"
    phone.network_technology_connected = "none" if lost else MODES[phone.network_mode_preference]
    phone.network_signal_strength = "none" if lost else _SIGNAL[phone.network_technology_connected]


def sim(phone: Phone) -> str:
    return "missing" if phone.sim_card_missing else phone.sim_card_status


def data_works(state: State) -> bool:
    phone = state.phone
    return (
        not phone.airplane_mode
        and phone.network_signal_strength != "none"
        and phone.network_connection_status != "no_service"
        and (not state.abroad or (phone.roaming_enabled and state.roaming_allowed))
        and phone.data_enabled
        and not state.data_used_up
    )


def speed(state: State) -> float | None:
    """Mbps; None without a connection."""
    if not data_works(state):
        return None
    phone = state.phone
    slow_vpn = phone.vpn_connected and phone.vpn_server_performance == "poor"
    factor = (_VPN_FACTOR if slow_vpn else 1.0) * (_DATA_SAVER_FACTOR if phone.data_saver_mode else 1.0)
    low, high = _MBPS[phone.network_technology_connected]
    return round((low + high) / 2 * _STRENGTH[phone.network_signal_strength] * factor, 2)


def band(mbps: float) -> tuple[str, str]:
    """(name, advice) of a speed."""
    return next((name, advice) for limit, name, advice in _BANDS if mbps < limit)


def mms_works(state: State) -> bool:
    phone = state.phone
    permissions = phone.apps.get("messaging", {})
    return (
        data_works(state)
        and phone.network_technology_connected != "2G"
        and not (phone.wifi_calling_enabled and phone.wifi_calling_mms_over_wifi)
        and phone.active_apn_settings["mmsc_url"] is not None
        and permissions.get("storage", False)
        and permissions.get("sms", False)
    )


def status_bar(phone: Phone) -> str:
    if phone.airplane_mode:
        icons = ["✈️ Airplane Mode"]
    else:
        icons = [_BARS[phone.network_signal_strength]]
        technology = phone.network_technology_connected
        if technology != "none":
            icons.append(technology)
        if technology != "none" and phone.data_enabled:
            icons += ["📱 Data Enabled", *(["🔽 Data Saver"] if phone.data_saver_mode else [])]
        else:
            icons.append("📵 Data Disabled")
    if phone.wifi_enabled and phone.wifi_connected:
        icons.append(f"📡 Connected to {phone.wifi_ssid}" if phone.wifi_ssid else "📡 Enabled")
    if phone.vpn_connected:
        icons.append("🔒 VPN Connected")
    return " | ".join([*icons, f"🔋 {phone.battery_level}%"])


def lose_wifi(phone: Phone) -> None:
    phone.wifi_connected, phone.wifi_ssid, phone.wifi_signal_strength = False, None, "none"
