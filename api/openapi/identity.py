"""The endpoints for signing in, for linking machines and for invite codes."""

from __future__ import annotations

from api.openapi.shapes import (
    IDEMPOTENCY_KEY,
    MANAGING,
    Json,
    boolean,
    errors,
    full,
    integer,
    json_answer,
    json_body,
    operation,
    ref,
    text,
    thing,
)

_EMAIL = text(
    "An e-mail address.",
    pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}\.[A-Za-z0-9-]{2,63}$",
)
_SECRET = text(pattern="^[!-~]{1,200}$")
_STARTING = (400, 413, 429, 503)

SCHEMAS: Json = {
    "Session": full(
        token=text("The session's JWT, which goes where an API key does."),
        token_type={"enum": ["Bearer"]},
        expires_in=integer("Seconds until it has to be refreshed.", minimum=1),
        refresh_token=text("Gets the next token, once."),
        account_id=text(format="uuid"),
    ),
    "DeviceCode": full(
        device_code=text("The machine's secret.", pattern="^[0-9a-f]{64}$"),
        user_code=text("What its owner enters.", pattern="^[A-HJKMNP-Z2-9]{4}-[A-HJKMNP-Z2-9]{4}$"),
        verification_uri=text("Where.", format="uri"),
        verification_uri_complete=text("The same with the code filled in.", format="uri"),
        expires_in=integer(minimum=1),
        interval=integer("Seconds between two polls.", minimum=1),
    ),
}

PATHS: Json = {
    "/auth/email/start": {
        "post": operation(
            "startSignIn",
            "Send a sign-in code to an address, whoever it is of.",
            {
                "200": json_answer(
                    full(status={"enum": ["sent"]}, challenge=text(), expires_in=integer(minimum=1)),
                    "It is on its way; the challenge has to come back with it.",
                )
            }
            | errors(*_STARTING, 500),
            body=json_body(thing({"email": _EMAIL}, ("email",)), {"ada": {"email": "ada@example.com"}}),
            public=True,
        )
    },
    "/auth/email/verify": {
        "post": operation(
            "signIn",
            "Turn a sign-in code into a session.",
            {"200": json_answer(ref("Session"), "The session.")} | errors(*_STARTING, 401),
            body=json_body(
                thing({"email": _EMAIL, "code": _SECRET, "challenge": _SECRET}, ("email", "code", "challenge")), {}
            ),
            public=True,
        )
    },
    "/auth/refresh": {
        "post": operation(
            "refreshSession",
            "The session's next token.",
            {"200": json_answer(ref("Session"), "The session.")} | errors(*_STARTING, 401),
            body=json_body(thing({"refresh_token": _SECRET}, ("refresh_token",)), {}),
            public=True,
        )
    },
    "/auth/logout": {
        "post": operation(
            "signOut",
            "End this session, or all sessions of the account. Needs a session.",
            {"200": json_answer(full(status={"enum": ["signed_out"]}), "It has ended.")}
            | errors(400, 401, 403, 413, 429, 500, 503),
            body=json_body(thing({"everywhere": boolean()}), {}, required=False),
        )
    },
    "/v1/device/code": {
        "post": operation(
            "beginDeviceLogin",
            "Codes for a machine that is to be linked to an account.",
            {"200": json_answer(ref("DeviceCode"), "The codes.")} | errors(400, 413, 429, 500, 503),
            body=json_body(
                thing(
                    {
                        "machine_name": text("What its owner knows it by."),
                        "chip": text("Both are shown to the owner; neither is needed."),
                    }
                ),
                {"a Mac": {"machine_name": "studio.local", "chip": "Apple M4 Max"}},
                required=False,
            ),
            public=True,
        )
    },
    "/v1/device/token": {
        "post": operation(
            "pollDeviceLogin",
            "The machine's provider token, once, when its owner has approved the code.",
            {
                "200": json_answer(
                    thing(
                        {
                            "status": {"enum": ["authorization_pending", "authorized", "access_denied"]},
                            "token": text(),
                            "account_id": text(),
                        },
                        ("status",),
                    ),
                    "How it stands.",
                )
            }
            | errors(*_STARTING, 404, 410),
            body=json_body(thing({"device_code": _SECRET}, ("device_code",)), {}),
            public=True,
        )
    },
    "/v1/device/approve": {
        "post": operation(
            "approveDevice",
            "Link the machine that shows a code to one's account. Needs a session.",
            {"200": json_answer(full(status={"enum": ["approved"]}, message=text()), "It is linked.")}
            | errors(*MANAGING, 404, 410, 500),
            body=json_body(thing({"user_code": _SECRET}, ("user_code",)), {}),
        )
    },
    "/v1/device/pending": {
        "get": operation(
            "showDevice",
            "What the machine that shows a code says of itself. Needs a session.",
            {
                "200": json_answer(
                    full(
                        user_code=text(),
                        machine_name=text("Empty where it does not say."),
                        chip=text("The same."),
                        requested_at=text(format="date-time"),
                        expires_at=text(format="date-time"),
                    ),
                    "The machine. Nobody has checked what it says.",
                )
            }
            | errors(*MANAGING, 404, 410, 500),
            parameters=[{"name": "user_code", "in": "query", "required": True, "schema": _SECRET}],
        )
    },
    "/v1/device/deny": {
        "post": operation(
            "refuseDevice",
            "Never link the machine that shows a code. Needs a session.",
            {"200": json_answer(full(status={"enum": ["denied"]}, message=text()), "It is refused.")}
            | errors(*MANAGING, 404, 410, 500),
            body=json_body(thing({"user_code": _SECRET}, ("user_code",)), {}),
        )
    },
    "/v1/device/revoke": {
        "post": operation(
            "revokeDeviceToken",
            "Take back the provider token that is sent as the bearer.",
            {"200": json_answer(full(status={"enum": ["revoked"]}), "It is revoked.")} | errors(401, 429, 503),
        )
    },
    "/v1/invite/redeem": {
        "post": operation(
            "redeemInvite",
            "Get the credit of an invite code, once an account.",
            {"200": json_answer(full(credited_usd=text(), balance_usd=text()), "It is credited.")}
            | errors(*MANAGING, 404),
            parameters=[IDEMPOTENCY_KEY],
            body=json_body(thing({"code": text(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{3,39}$")}, ("code",)), {}),
        )
    },
}
