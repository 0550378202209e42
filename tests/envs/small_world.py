"""A small telecom world written for tests, in the format of tau2's files: one customer with two lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rl_likelihood.envs import telecom
from rl_likelihood.envs.telecom_state import World, make_world

_FOLDER = os.environ.get("RL_LIKELIHOOD_TAU2", "")  # of tau2's telecom files
REAL = Path(_FOLDER) if _FOLDER and Path(_FOLDER).is_dir() else None
needs_tau2 = pytest.mark.skipif(REAL is None, reason=f"RL_LIKELIHOOD_TAU2 names no folder ({_FOLDER!r})")

LINE = {"customer_id": "C1", "line_id": "L2"}
CARRIER = {
    "plans": [
        {
            "plan_id": "P1",
            "name": "Small",
            "data_limit_gb": 3,
            "price_per_month": 12.5,
            "data_refueling_price_per_gb": 1.5,
        }
    ],
    "devices": [
        {
            "device_id": "D1",
            "device_type": "phone",
            "model": "Brick",
            "is_esim_capable": False,
            "activation_date": "2024-05-01T08:00:00",
        }
    ],
    "lines": [
        {"line_id": "L1", "phone_number": "1-1", "status": "Active", "plan_id": "P1"},
        {
            "line_id": "L2",
            "phone_number": "2-2",
            "status": "Active",
            "plan_id": "P1",
            "device_id": "D1",
            "data_used_gb": 1.25,
            "contract_end_date": "2026-01-31",
        },
    ],
    "bills": [
        {
            "bill_id": "B1",
            "customer_id": "C1",
            "period_start": "2025-02-01",
            "period_end": "2025-02-28",
            "issue_date": "2025-02-05",
            "total_due": 25.0,
            "due_date": "2025-02-19",
            "status": "Issued",
        }
    ],
    "customers": [
        {
            "customer_id": "C1",
            "full_name": "Ada Low",
            "date_of_birth": "1990-01-02",
            "email": "ada@example.com",
            "phone_number": "9-9",
            "address": {"street": "Mill Lane 1", "city": "Ely", "state": "CA", "zip_code": "90000"},
            "account_status": "Active",
            "created_at": "2020-03-04T05:06:07",
            "line_ids": ["L1", "L2"],
            "bill_ids": ["B1"],
        }
    ],
}
USER = {
    "device": {
        "app_statuses": {
            "messaging": {"app_name": "messaging", "permissions": {"sms": True, "storage": True}},
            "browser": {"app_name": "browser", "permissions": {"network": True}},
        }
    }
}


def world() -> World:
    return make_world(CARRIER, USER)


def task(*faults: tuple[str, dict], **more) -> telecom.Task:
    """The task of a `record`."""
    return telecom.make_task(record(*faults, **more))


def record(
    *faults: tuple[str, dict], assertions=(), actions=(), basis=("ENV_ASSERTION",), ticket: str = ""
) -> dict[str, Any]:
    """A task about line L2. Faults and assertions are (name, arguments), actions (name, arguments, compared)."""
    user = {"func_name": "set_user_info", "arguments": {"name": "Ada Low", "phone_number": "2-2"}}
    return {
        "id": "[small_issue]test",
        "ticket": ticket
        or "No service. Customer name: Ada Low, phone number: 2-2. They gave permission to pay all bills.",
        "initial_state": {"initialization_actions": [user, *({"func_name": f, "arguments": a} for f, a in faults)]},
        "evaluation_criteria": {
            "actions": [{"name": n, "arguments": a, "compare_args": c} for n, a, c in actions],
            "env_assertions": [{"func_name": n, "arguments": a, "assert_value": True} for n, a in assertions],
            "reward_basis": list(basis),
        },
    }


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(x)}" for name, x in value.items()) + "}"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


def write(folder: Path, *records: dict[str, Any]) -> None:
    """The world and its tasks as tau2's files."""
    for name, tables in (("db.toml", CARRIER), ("user_db.toml", USER)):
        (folder / name).write_text("".join(f"{table} = {toml(value)}\n" for table, value in tables.items()))
    (folder / "tasks.json").write_text(json.dumps(records))
