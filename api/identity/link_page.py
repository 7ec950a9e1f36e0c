"""/link: a page on which a machine's owner signs in and links it (console, section 7).

Both happen in one step: the code from the mail is entered with the machine's code, and approves it. So the page needs
no cookie, and nobody can be made to link a machine by a request that their browser sends by itself.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from api.consumer.body import CONTROL_BYTES_MAX, read_form
from api.identity.desk import IdentityDesk, identity_of
from api.identity.device_routes import PAGE
from api.identity.devices import normalised
from api.identity.limits import address_of
from api.identity.sign_in import read_address
from domain.errors import CodeNotFound, DarkbloomError, InvalidRequest

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
<p>A sign-in code is on its way to {email}. Enter it to link the machine that shows <strong>{code}</strong> to your
account.</p>
<form method="post" action="/link/approve">
<input type="hidden" name="code" value="{code}"><input type="hidden" name="email" value="{email}">
<input type="hidden" name="challenge" value="{challenge}">
<label>Sign-in code <input name="sign_in_code" inputmode="numeric" maxlength="12" autocomplete="one-time-code"
required></label>
<button>Sign in and link this machine</button></form>
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
        code = _needed_code(typed)
        challenge = await sign_in.start(read_address(email), address_of(request))
    except DarkbloomError as error:
        return _page(_first_form(typed, email), error)
    return _page(_second_form(code, email, challenge))


@router.post("/link/approve")
async def approve(request: Request) -> Response:
    desk = identity_of(request)
    form = await read_form(request, CONTROL_BYTES_MAX)
    typed, email, challenge = form.get("code", "")[:20], form.get("email", "")[:254], form.get("challenge", "")[:64]
    try:
        await _link(desk, form, _needed_code(typed), read_address(email), challenge)
    except CodeNotFound as error:
        return _page(_first_form(typed, email), error)
    except DarkbloomError as error:
        return _page(_second_form(typed, email, challenge), error)
    return _page(_DONE)


async def _link(desk: IdentityDesk, form: dict[str, str], code: str, email: str, challenge: str) -> None:
    if not challenge:
        raise InvalidRequest("Ask for a sign-in code first.")
    person, _ = await desk.need_sign_in().person_of(email, challenge, form.get("sign_in_code", "")[:20])
    await desk.need_devices().approve(code, person.account_id)


def _needed_code(typed: str) -> str:
    code = normalised(typed)
    if not code:
        raise CodeNotFound
    return code


def _first_form(code: str, email: str) -> str:
    return _FIRST_FORM.format(code=escape(code), email=escape(email))


def _second_form(code: str, email: str, challenge: str) -> str:
    return _SECOND_FORM.format(code=escape(code), email=escape(email), challenge=escape(challenge))


def _page(content: str, error: DarkbloomError | None = None) -> Response:
    problem = f'<p class="problem" role="alert">{escape(error.message)}</p>' if error else ""
    html = _PAGE.format(style=_STYLE, script=_SCRIPT, problem=problem, content=content)
    return HTMLResponse(html, status_code=error.http_status if error else 200, headers=_HEADERS)
