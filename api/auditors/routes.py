"""What finance auditors and admins call: everything below /v1/admin/finance."""

from api.auditors import books, changes, exports, proofs, replays

ROUTERS = (books.router, exports.router, proofs.router, replays.router, changes.router)
