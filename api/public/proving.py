"""Makes proofs from the stored tree and its signed checkpoints, for HTTP and for the command line alike."""

from __future__ import annotations

import logging
from uuid import UUID

from api.public.ports import TransparencyLog
from domain.errors import CheckpointPending, InternalError, InvalidRequest, NotFound
from domain.transparency import checkpoint, merkle, note, proofs
from domain.transparency.checkpoint import Checkpoint
from domain.transparency.merkle import ProofRejected
from domain.transparency.proofs import ConsistencyProof, InclusionProof
from domain.transparency.tiles import TreeDamaged

log = logging.getLogger(__name__)


async def signed_checkpoint(transparency: TransparencyLog, size: int | None = None) -> str:
    """The newest signed checkpoint, or the one of a size. Raises NotFound."""
    signed = await transparency.checkpoints.note(size)
    if signed is not None:
        return signed
    if size is not None:
        raise NotFound(f"No checkpoint of size {size} was signed; leave 'size' out for the newest one.")
    raise NotFound("This log has no signed checkpoint yet.")


async def prove_inclusion(
    transparency: TransparencyLog, position: int, *, size: int | None = None, wallet_id: UUID | None = None
) -> InclusionProof:
    """The proof of the event at a position, which must be one of the wallet when a wallet is given.

    Raises:
        NotFound: there is no such event, or no such checkpoint.
        CheckpointPending: no checkpoint covers the event yet; one has been asked for.
        InternalError: the stored tree contradicts the event or the checkpoint.
    """
    event = await transparency.tree.event(position, wallet_id)
    if event is None:
        raise NotFound("The log holds no such event of yours." if wallet_id else f"The log has no position {position}.")
    signed = await transparency.checkpoints.note(size)
    if signed is None and size is not None:
        raise NotFound(f"No checkpoint of size {size} was signed; leave 'size' out for the newest one.")
    covered = _read(signed).size if signed else 0
    if signed is None or position > covered:
        if size is not None:
            raise InvalidRequest(f"The checkpoint of size {size} is older than position {position}.", param="size")
        await transparency.checkpoints.wish()
        raise CheckpointPending
    try:
        hashed, steps = await transparency.tree.inclusion(position, covered)
        return proofs.prove_inclusion(event, hashed, steps, signed)
    except (TreeDamaged, ProofRejected) as error:
        log.critical("position %d cannot be proven: %s", position, error)
        raise InternalError(f"Position {position} does not match what was signed. Tell the operator.") from None


async def prove_consistency(transparency: TransparencyLog, old_size: int, new_size: int | None) -> ConsistencyProof:
    """The proof that the log of ``new_size`` events, or of the newest checkpoint, begins with that of ``old_size``.

    Raises:
        InvalidRequest: the sizes are in the wrong order.
        NotFound: no checkpoint covers the newer size.
        InternalError: the stored tree is damaged.
    """
    newest = _read(await signed_checkpoint(transparency)).size
    end = newest if new_size is None else new_size
    if end > newest:
        raise NotFound(f"The newest signed checkpoint covers {newest} events.")
    if not 1 <= old_size <= end:
        raise InvalidRequest("'from' is at least 1 and at most 'to'.", param="from")
    ranges = merkle.consistency_ranges(old_size, end)
    try:
        old_root, new_root, *steps = await transparency.tree.roots([(0, old_size), (0, end), *ranges])
    except TreeDamaged as error:
        log.critical("the stored tree is damaged: %s", error)
        raise InternalError("The stored tree does not match what was signed. Tell the operator.") from None
    return ConsistencyProof(
        old_size=old_size,
        new_size=end,
        old_root=old_root.hex(),
        new_root=new_root.hex(),
        proof=tuple(step.hex() for step in steps),
    )


def _read(signed: str) -> Checkpoint:
    return checkpoint.read(note.parse(signed))
