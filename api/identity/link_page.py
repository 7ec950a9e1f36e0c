"""/link: a page on which a machine's owner signs in and links it (console, section 7).

Both happen in one step: the code from the mail is entered with the machine's code, and approves it. So the page needs
no cookie, and nobody can be made to link a machine by a request that their browser sends by itself.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC
from html import escape

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from api.consumer.body import CONTROL_BYTES_MAX, read_form
from api.identity.desk import IdentityDesk, identity_of
from api.identity.device_routes import PAGE
from api.identity.devices import DeviceLogin, normalised
from api.identity.limits import address_of
from api.identity.sign_in import read_address
from domain.errors import DarkbloomError, InvalidRequest
from domain.people import AskingMachine, Person

router = APIRouter(include_in_schema=False)

_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:30rem;margin:3rem auto;padding:0 1rem}"
    "label,input,button{display:block;font:inherit;margin:.5rem 0}input,button{padding:.4rem;width:100%;"
    "box-sizing:border-box}.problem{color:#a00}"
)
_SCRIPT = "history.replaceState(null,'',location.pathname)"
"""The code does not stay in the address bar."""


def _hash_of(inline: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"


_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": f"default-src 'none'; style-src {_hash_of(_STYLE)}; script-src {_hash_of(_SCRIPT)}; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Link a machine – Darkbloom</title><style>{style}</style><script>{script}</script></head>
<body><h1>Link a machine</h1>{problem}{content}</body></html>
"""

_FIRST_FORM = """
<p>Linking lets a machine earn into your account. Enter a code only if you ran <code>darkbloom login</code> yourself;
nobody else should ever ask you to.</p>
<form method="post" action="/link/sign-in">
<label>Code that the machine shows <input name="code" value="{code}" maxlength="20" autocomplete="off" required
autocapitalize="characters" spellcheck="false"></label>
<label>Your e-mail address <input name="email" type="email" value="{email}" maxlength="254" required></label>
<button>Send me a sign-in code</button></form>
"""

_SECOND_FORM = """
<p>This machine asks to be linked to your account:</p>
<dl><dt>Code</dt><dd><strong>{code}</strong></dd>{machine}</dl>
<p>The name and the chip are what it says of itself. A sign-in code is on its way to {email}. Enter it, and say whether
the machine is yours.</p>
<form method="post" action="/link/approve">
<input type="hidden" name="code" value="{code}"><input type="hidden" name="email" value="{email}">
<input type="hidden" name="challenge" value="{challenge}">
<label>Sign-in code <input name="sign_in_code" inputmode="numeric" maxlength="12" autocomplete="one-time-code"
required></label>
<button>Sign in and link this machine</button>
<button formaction="/link/refuse">Not mine: sign in and refuse it</button></form>
"""

_REFUSED = """
<p>The machine is not linked, and is told so. Whoever ran <code>darkbloom login</code> there needs a new code to ask
again.</p>
"""

_DONE = """
<p>The machine is linked. It goes on by itself within a few seconds; this window can be closed.</p>
<p>Next, on the machine: <code>darkbloom serve</code>.</p>
"""


@router.get(PAGE)
async def show(request: Request) -> Response:
    """The first form, with the code of the address filled in. Nothing happens before somebody sends it."""
    identity_of(request).need_devices()
    return _page(_first_form(normalised(request.query_params.get("code", "")), ""))


@router.post("/link/sign-in")
async def send_code(request: Request) -> Response:
    sign_in = identity_of(request).need_sign_in()
    form = await read_form(request, CONTROL_BYTES_MAX)
    typed, email = form.get("code", "")[:20], form.get("email", "")[:254]
    try:
        address = address_of(request)
        machine = await identity_of(request).need_devices().who_asks(typed, address)
        challenge = await sign_in.start(read_address(email), address)
    except DarkbloomError as error:
        return _page(_first_form(typed, email), error)
    return _page(_second_form(normalised(typed), email, challenge, machine))


@router.post("/link/approve")
async def approve(request: Request) -> Response:
    return await _answered(request, DeviceLogin.approve, _DONE)


@router.post("/link/refuse")
async def refuse(request: Request) -> Response:
    return await _answered(request, DeviceLogin.refuse, _REFUSED)


async def _answered(request: Request, say: Callable[[DeviceLogin, str, str], Awaitable[None]], done: str) -> Response:
    """Sign the owner in, and let what the owner says of the machine hold."""
    desk = identity_of(request)
    devices = desk.need_devices()
    form = await read_form(request, CONTROL_BYTES_MAX)
    typed, email, challenge = form.get("code", "")[:20], form.get("email", "")[:254], form.get("challenge", "")[:64]
    try:
        machine = await devices.who_asks(typed, address_of(request))
    except DarkbloomError as error:
        return _page(_first_form(typed, email), error)
    try:
        person = await _person(desk, read_address(email), challenge, form.get("sign_in_code", "")[:20])
        await say(devices, typed, person.account_id)
    except DarkbloomError as error:
        return _page(_second_form(normalised(typed), email, challenge, machine), error)
    return _page(done)


async def _person(desk: IdentityDesk, email: str, challenge: str, sign_in_code: str) -> Person:
    if not challenge:
        raise InvalidRequest("Ask for a sign-in code first.")
    person, _ = await desk.need_sign_in().person_of(email, challenge, sign_in_code)
    return person


def _first_form(code: str, email: str) -> str:
    return _FIRST_FORM.format(code=escape(code), email=escape(email))


def _second_form(code: str, email: str, challenge: str, machine: AskingMachine) -> str:
    asked = machine.asked_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = (("Machine", machine.name), ("Chip", machine.chip), ("Asked", asked))
    described = "".join(f"<dt>{name}</dt><dd>{escape(fact)}</dd>" for name, fact in facts if fact)
    return _SECOND_FORM.format(code=escape(code), email=escape(email), challenge=escape(challenge), machine=described)


def _page(content: str, error: DarkbloomError | None = None) -> Response:
    problem = f'<p class="problem" role="alert">{escape(error.message)}</p>' if error else ""
    html = _PAGE.format(style=_STYLE, script=_SCRIPT, problem=problem, content=content)
    return HTMLResponse(html, status_code=error.http_status if error else 200, headers=_HEADERS)
