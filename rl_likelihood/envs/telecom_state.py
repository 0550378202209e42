"""The world of tau2-bench's telecom tasks: the carrier's records, one phone, and where its user is.

The carrier's records are dicts whose fields stand in the order in which the tools print them. A record is never
changed but replaced (`State.change`), so that conversations share what they do not touch and start in microseconds.
The phone's fields have the names of tau2's user_db.toml.
"""

import copy
import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_likelihood.errors import UserError

TODAY = "2025-02-25"  # the day on which every task takes place

# Table of db.toml -> its fields in order, the record's id first. A field with a question mark may be missing.
_FIELDS = {
    "plans": "plan_id name data_limit_gb price_per_month data_refueling_price_per_gb",
    "devices": "device_id device_type model imei? is_esim_capable activated? activation_date? last_esim_transfer_date?",
    "lines": """line_id phone_number status? plan_id device_id? data_used_gb? data_refueling_gb? roaming_enabled?
        contract_end_date? last_plan_change_date? last_sim_replacement_date? suspension_start_date?""",
    "bills": "bill_id customer_id period_start period_end issue_date total_due due_date line_items? status?",
    "customers": """customer_id full_name date_of_birth email phone_number address account_status? payment_methods?
        line_ids? bill_ids? created_at last_extension_date? goodwill_credit_used_this_year?""",
}
_STATUS = {"lines": "Pending Activation", "bills": "Draft"}
_DEFAULTS = {
    "activated": False,
    "roaming_enabled": False,
    "account_status": "Pending Verification",
    **dict.fromkeys(("data_used_gb", "data_refueling_gb", "goodwill_credit_used_this_year"), 0.0),
    **dict.fromkeys(("line_items", "payment_methods", "line_ids", "bill_ids"), ()),
}  # None for the others
_TIMES = ("activation_date", "last_esim_transfer_date", "created_at")  # printed with a space in place of the T
_AMOUNTS = """data_limit_gb price_per_month data_refueling_price_per_gb data_used_gb data_refueling_gb total_due
    goodwill_credit_used_this_year amount""".split()

APN = {"apn_name": "internet", "mmsc_url": "http://mms.carrier.com/mms/wapenc", "reset_at_reboot": False}
PERMISSIONS = ("sms", "storage", "phone", "network")


@dataclasses.dataclass
class Phone:
    sim_card_status: str = "active"  # active | locked_pin | locked_puk
    sim_card_missing: bool = False
    airplane_mode: bool = False
    network_signal_strength: str = "good"  # none | poor | fair | good | excellent
    network_technology_connected: str = "5G"  # none | 2G | 3G | 4G | 5G
    network_connection_status: str = "connected"  # connected | no_service
    battery_level: int = 80
    data_enabled: bool = True
    roaming_enabled: bool = False
    network_mode_preference: str = "4g_5g_preferred"
    wifi_enabled: bool = False
    wifi_connected: bool = False
    wifi_ssid: str | None = None
    wifi_signal_strength: str = "none"
    wifi_calling_enabled: bool = False
    wifi_calling_mms_over_wifi: bool = False
    data_saver_mode: bool = False
    vpn_enabled_setting: bool = False
    vpn_connected: bool = False
    vpn_server_performance: str = "excellent"  # of the one server that the phone knows, connected or not
    active_apn_settings: dict = dataclasses.field(default_factory=lambda: dict(APN))
    apps: dict[str, dict[str, bool]] = dataclasses.field(default_factory=dict)  # app -> permission -> granted


@dataclasses.dataclass
class World:
    """What every conversation starts from. Tables are id -> record."""

    plans: Mapping[str, dict]
    devices: Mapping[str, dict]
    lines: dict[str, dict]
    bills: dict[str, dict]
    customers: dict[str, dict]
    phone: Phone


@dataclasses.dataclass
class State(World):
    """One conversation's world. Its user has no line until `phone_number` is set."""

    phone_number: str = ""
    abroad: bool = False

    def change(self, table: str, key: str, **fields) -> dict:
        """The record with these fields instead."""
        records = getattr(self, table)
        records[key] = {**records[key], **fields}
        return records[key]

    @property
    def line(self) -> dict | None:
        """The user's own line."""
        return next((line for line in self.lines.values() if line["phone_number"] == self.phone_number), None)

    @property
    def line_active(self) -> bool:
        return self.line is None or self.line["status"] == "Active"

    @property
    def roaming_allowed(self) -> bool:
        return self.line is not None and self.line["roaming_enabled"]

    @property
    def data_used_up(self) -> bool:
        line = self.line
        if line is None:
            return False
        return line["data_used_gb"] >= self.plans[line["plan_id"]]["data_limit_gb"] + line["data_refueling_gb"]


def fresh(world: World) -> State:
    """A state of its own, before the task's first fault."""
    return State(
        world.plans, world.devices, dict(world.lines), dict(world.bills), dict(world.customers), copy.copy(world.phone)
    )


# ---------------------------------------------------------------------------------------- files


def read_world(folder: str | Path) -> World:
    """The world of a folder with tau2's db.toml and user_db.toml."""
    return make_world(read_toml(Path(folder) / "db.toml"), read_toml(Path(folder) / "user_db.toml"))


def make_world(carrier: Mapping, user: Mapping) -> World:
    """The world of what db.toml and user_db.toml hold."""
    tables = {}
    for name, fields in _FIELDS.items():
        rows = [{f.rstrip("?"): _value(name, row, f) for f in fields.split()} for row in carrier.get(name, ())]
        tables[name] = {next(iter(record.values())): record for record in rows}
    for line in tables["lines"].values():
        if line["plan_id"] not in tables["plans"]:
            raise UserError(f"db.toml: line {line['line_id']} has plan_id {line['plan_id']!r}, which is no plan there")
    return World(**tables, phone=_phone(user))


def _value(table: str, row: Mapping, field: str) -> Any:
    name = field.rstrip("?")
    if name not in row and name == field:
        raise UserError(f"db.toml: a record of {table} has no {field}; add it")
    default = _STATUS[table] if name == "status" else _DEFAULTS.get(name)
    return _plain(name, row.get(name, default))


def _plain(field: str, value: Any) -> Any:
    """The value as the tools print it."""
    if isinstance(value, Mapping):
        return {name: _plain(name, v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(field, v) for v in value]
    if field in _AMOUNTS:
        return float(value)
    return value.replace("T", " ") if field in _TIMES and isinstance(value, str) else value


def _phone(user: Mapping) -> Phone:
    device = dict(user.get("device", {}))
    apn = {**APN, **device.pop("active_apn_settings", {})}
    apps = {
        name: {p: bool(app.get("permissions", {}).get(p, False)) for p in PERMISSIONS}
        for name, app in device.pop("app_statuses", {}).items()
    }
    known = {field.name for field in dataclasses.fields(Phone)}
    unknown = [name for name in device if name not in known] + [name for name in user if name != "device"]
    if unknown:
        raise UserError(f"user_db.toml: {unknown[0]!r} is not known; take it out")
    return Phone(**device, active_apn_settings=apn, apps=apps)


def read_toml(path: Path) -> dict:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); name a folder with tau2's telecom files") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path} is not TOML ({e}); fetch it again") from e
