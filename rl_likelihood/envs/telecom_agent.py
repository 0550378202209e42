"""The 13 tools with which an agent reads and changes the carrier's records. Replies are tau2's, letter for letter."""

import json
from typing import NamedTuple

from rl_likelihood.envs.telecom_state import TODAY, State
from rl_likelihood.envs.tools import Parameter, Tool, ToolError, table


class Month(NamedTuple):
    """The dates of a bill."""

    period_start: str
    period_end: str
    issue_date: str
    due_date: str


# Dates that follow from TODAY.
_CYCLE_END = "2025-02-28"
_NEXT_MONTH = Month("2025-03-01", "2025-03-31", "2025-03-01", "2025-03-15")

_KINDS = {word[0]: word for word in ("Line", "Device", "Bill", "Customer", "Plan")}


def _record(state: State, key: str) -> dict:
    """The record of an id, whose first letter says what it is."""
    if key[:1] not in _KINDS:
        raise ToolError(f"Unknown ID format or type: {key}")
    word = _KINDS[key[0]]
    return look_up(getattr(state, f"{word.lower()}s"), key, word)


def look_up(records, key: str, word: str) -> dict:
    if key not in records:
        raise ToolError(f"{word} with ID {key} not found")
    return records[key]


def own_line(state: State, customer_id: str, line_id: str) -> dict:
    customer = look_up(state.customers, customer_id, "Customer")
    if line_id not in customer["line_ids"]:
        raise ToolError(f"Line {line_id} not found for customer {customer_id}")
    return look_up(state.lines, line_id, "Line")


def customer_of(state: State, phone_number: str) -> dict:
    for customer in state.customers.values():
        numbers = [look_up(state.lines, line_id, "Line")["phone_number"] for line_id in customer["line_ids"]]
        if phone_number in (customer["phone_number"], *numbers):
            return customer
    raise ToolError(f"Customer with phone number {phone_number} not found")


def awaiting_payment(state: State, customer: dict) -> list[dict]:
    bills = [look_up(state.bills, key, "Bill") for key in customer["bill_ids"]]
    return [bill for bill in bills if bill["status"] == "Awaiting Payment"]


# ---------------------------------------------------------------------------------------- reading


def get_customer_by_phone(state: State, phone_number: str) -> str:
    return json.dumps(customer_of(state, phone_number))


def get_customer_by_id(state: State, customer_id: str) -> str:
    return json.dumps(look_up(state.customers, customer_id, "Customer"))


def get_customer_by_name(state: State, full_name: str, dob: str) -> str:
    name = full_name.lower()
    matches = [c for c in state.customers.values() if c["full_name"].lower() == name and c["date_of_birth"] == dob]
    return json.dumps(matches)


def get_details_by_id(state: State, id: str) -> str:
    return json.dumps(_record(state, id))


def get_bills_for_customer(state: State, customer_id: str, limit: int = 12) -> str:
    customer = look_up(state.customers, customer_id, "Customer")
    bills = [look_up(state.bills, key, "Bill") for key in customer["bill_ids"]]
    return json.dumps(sorted(bills, key=lambda bill: bill["issue_date"], reverse=True)[:limit])


def get_data_usage(state: State, customer_id: str, line_id: str) -> str:
    line = own_line(state, customer_id, line_id)
    usage = {
        "line_id": line_id,
        "data_used_gb": str(line["data_used_gb"]),
        "data_limit_gb": str(state.plans[line["plan_id"]]["data_limit_gb"]),
        "data_refueling_gb": str(line["data_refueling_gb"]),
        "cycle_end_date": _CYCLE_END,
    }
    return json.dumps(usage)


# ---------------------------------------------------------------------------------------- changing


def suspend_line(state: State, customer_id: str, line_id: str, reason: str) -> str:
    if own_line(state, customer_id, line_id)["status"] != "Active":
        raise ToolError("Line must be active to suspend")
    line = state.change("lines", line_id, status="Suspended", suspension_start_date=TODAY)
    return json.dumps({"message": "Line suspended successfully. $5/month holding fee will apply.", "line": line})


def resume_line(state: State, customer_id: str, line_id: str) -> str:
    if own_line(state, customer_id, line_id)["status"] not in ("Suspended", "Pending Activation"):
        raise ToolError("Line must be suspended to resume")
    line = state.change("lines", line_id, status="Active", suspension_start_date=None)
    return json.dumps({"message": "Line resumed successfully", "line": line})


def send_payment_request(state: State, customer_id: str, bill_id: str) -> str:
    customer = look_up(state.customers, customer_id, "Customer")
    if awaiting_payment(state, customer):
        raise ToolError("A bill is already awaiting payment for this customer")
    if bill_id not in customer["bill_ids"]:
        raise ToolError(f"Bill {bill_id} not found for customer {customer_id}")
    look_up(state.bills, bill_id, "Bill")
    state.change("bills", bill_id, status="Awaiting Payment")
    return f"Payment request sent to the customer for bill {bill_id}"


def enable_roaming(state: State, customer_id: str, line_id: str) -> str:
    if own_line(state, customer_id, line_id)["roaming_enabled"]:
        return "Roaming was already enabled"
    state.change("lines", line_id, roaming_enabled=True)
    return "Roaming enabled successfully"


def disable_roaming(state: State, customer_id: str, line_id: str) -> str:
    if not own_line(state, customer_id, line_id)["roaming_enabled"]:
        return "Roaming was already disabled"
    state.change("lines", line_id, roaming_enabled=False)
    return "Roaming disabled successfully"


def refuel_data(state: State, customer_id: str, line_id: str, gb_amount: float) -> str:
    line = own_line(state, customer_id, line_id)
    if gb_amount <= 0:
        raise ToolError("Refuel amount must be positive")
    price = state.plans[line["plan_id"]]["data_refueling_price_per_gb"]
    charge = gb_amount * price
    line = state.change("lines", line_id, data_refueling_gb=line["data_refueling_gb"] + gb_amount)
    _charge(state, customer_id, charge, f"Data refueling: {gb_amount} GB at ${price}/GB")
    done = {
        "message": f"Successfully added {gb_amount} GB of data for line {line_id} for ${charge:.2f}",
        "new_data_refueling_gb": str(line["data_refueling_gb"]),
        "charge": str(charge),
    }
    return json.dumps(done)


def _charge(state: State, customer_id: str, amount: float, description: str) -> None:
    """Add to the customer's draft bill, which is made where there is none."""
    customer = state.customers[customer_id]
    drafts = [key for key in customer["bill_ids"] if look_up(state.bills, key, "Bill")["status"] == "Draft"]
    key = drafts[0] if drafts else new_bill(state, customer_id, f"B{len(state.bills):08x}", "Draft", _NEXT_MONTH)
    bill = state.bills[key]
    item = {"description": description, "amount": amount, "date": TODAY, "item_type": "Charge"}
    state.change("bills", key, total_due=bill["total_due"] + amount, line_items=[*bill["line_items"], item])


def new_bill(state: State, customer_id: str, key: str, status: str, month: Month) -> str:
    state.bills[key] = {
        "bill_id": key,
        "customer_id": customer_id,
        "period_start": month.period_start,
        "period_end": month.period_end,
        "issue_date": month.issue_date,
        "total_due": 0,
        "due_date": month.due_date,
        "line_items": [],
        "status": status,
    }
    state.change("customers", customer_id, bill_ids=[*state.customers[customer_id]["bill_ids"], key])
    return key


def transfer_to_human_agents(state: State, summary: str) -> str:
    return "Transfer successful"


# ---------------------------------------------------------------------------------------- the table

_CUSTOMER = Parameter("customer_id", "string", "The customer's ID, C1001 for instance.")
_LINE = Parameter("line_id", "string", "The ID of a line of this customer.")
_BILL = Parameter("bill_id", "string", "The ID of a bill of this customer.")

TOOLS = table(
    (
        Tool(
            get_customer_by_phone,
            "Look a customer up by the contact number or the number of a line.",
            (Parameter("phone_number", "string", "The number, 555-123-2002 for instance."),),
        ),
        Tool(get_customer_by_id, "Look a customer up by ID.", (_CUSTOMER,)),
        Tool(
            get_customer_by_name,
            "Look customers up by full name and date of birth.",
            (Parameter("full_name", "string", "First and last name."), Parameter("dob", "string", "YYYY-MM-DD.")),
        ),
        Tool(
            get_details_by_id,
            "Read the record of a customer, line, device, bill or plan.",
            (Parameter("id", "string", "The record's ID."),),
        ),
        Tool(
            suspend_line,
            "Suspend an active line for up to six months, at a monthly fee.",
            (_CUSTOMER, _LINE, Parameter("reason", "string", "Why the line is suspended.")),
        ),
        Tool(resume_line, "Make a suspended line active again.", (_CUSTOMER, _LINE)),
        Tool(
            get_bills_for_customer,
            "List a customer's bills, the newest first.",
            (_CUSTOMER, Parameter("limit", "integer", "The most bills to list; 12 if left out.", required=False)),
        ),
        Tool(
            send_payment_request,
            "Ask the customer to pay a bill. Whether the bill is due is not checked, and only one bill of a customer "
            "can await payment.",
            (_CUSTOMER, _BILL),
        ),
        Tool(get_data_usage, "Read a line's data usage, limit and refueled data of this month.", (_CUSTOMER, _LINE)),
        Tool(enable_roaming, "Let a line roam abroad.", (_CUSTOMER, _LINE)),
        Tool(disable_roaming, "Stop a line from roaming abroad.", (_CUSTOMER, _LINE)),
        Tool(
            transfer_to_human_agents,
            "Hand the case over to a human. Only for what the policy and the tools cannot solve, or if the user asks.",
            (Parameter("summary", "string", "The user's problem in brief."),),
        ),
        Tool(
            refuel_data,
            "Add data to a line; the price goes on the customer's next bill.",
            (_CUSTOMER, _LINE, Parameter("gb_amount", "number", "How many GB to add.")),
        ),
    )
)
