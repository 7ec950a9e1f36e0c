"""The endpoints in which an owner sees how the account's machines fare."""

from __future__ import annotations

from api.openapi.shapes import (
    READING,
    Json,
    array,
    boolean,
    errors,
    full,
    integer,
    json_answer,
    operation,
    ref,
    text,
    thing,
)

_SUMMARY: Json = {
    "id": text("The hash of the machine's signing key.", pattern="^[0-9a-f]{64}$"),
    "connected": boolean(),
    "status": {"enum": ["online", "draining", "untrusted", "offline"]},
    "routable": boolean(),
    "routable_for_owner": boolean("Whether it is for requests of its owner with the header X-Darkbloom-Route."),
    "summary": text("Why it gets work or none, in a sentence."),
    "reasons": array(ref("RoutingReason")),
    "last_seen_at": text(format="date-time"),
    "trust_level": text(),
    "chip": text(),
    "machine_model": text(),
    "models": array(text()),
}

SCHEMAS: Json = {
    "RoutingReason": full(code=text(), message=text(), fix=text("What the owner can do.")),
    "Machine": full(**_SUMMARY),
    "MachineRouting": thing(
        _SUMMARY
        | {
            "per_model": array(
                thing(
                    {
                        "id": text(),
                        "routable": boolean(),
                        "reasons": array(ref("RoutingReason")),
                        "requests_in_flight": integer(minimum=0),
                        "cost_ms": thing(
                            {"total": integer()}, ("total",), "Every term of the cost of a usual request."
                        ),
                    },
                    ("id", "routable", "reasons", "requests_in_flight", "cost_ms"),
                )
            )
        },
        (*_SUMMARY, "per_model"),
    ),
}

PATHS: Json = {
    "/v1/me/providers": {
        "get": operation(
            "listMachines",
            "The machines that are linked to the account, each with whether it can get work.",
            {"200": json_answer(full(providers=array(ref("Machine"))), "The machines.")} | errors(*READING),
        )
    },
    "/v1/me/providers/{machine_id}/routing": {
        "get": operation(
            "explainMachine",
            "Everything that keeps one machine from work, for each of its models, with what to do.",
            {"200": json_answer(ref("MachineRouting"), "How it stands.")} | errors(*READING, 404),
            parameters=[{"name": "machine_id", "in": "path", "required": True, "schema": text(minLength=1)}],
        )
    },
}
