"""``darkbloom serve``: from settings to a connected machine, and back down again (provider agent, section 3.4)."""

from __future__ import annotations

import asyncio
import logging
import os

from agent import hardware, models
from agent.engine.choice import Threads, engine_for
from agent.errors import AgentStopping
from agent.files import private_directory
from agent.identity import Identity, load_identity
from agent.link import Link
from agent.lock import InstanceLock
from agent.log import guard_loop
from agent.machine import Machine, Slot
from agent.models import ModelFolder
from agent.posture import Hardening, harden
from agent.settings import ServeSettings
from agent.shutdown import Shutdown
from agent.version import agent_version
from domain.protocol import OfferedModel

_log = logging.getLogger(__name__)


def serve(settings: ServeSettings) -> int:
    """Serve until a signal ends it; returns the exit code.

    Raises:
        StartError: the agent cannot start, or another one took its place.
    """
    lock = InstanceLock(private_directory(settings.home))
    hardening = harden(os.environ)
    identity = load_identity(settings.home)
    folders = [models.inspect(path) for path in settings.model_paths]
    threads = Threads()
    try:
        return asyncio.run(_serve(settings, identity, hardening, folders, threads))
    finally:
        threads.close()
        lock.release()


async def _serve(
    settings: ServeSettings, identity: Identity, hardening: Hardening, folders: list[ModelFolder], threads: Threads
) -> int:
    guard_loop(asyncio.get_running_loop())
    shutdown = Shutdown(settings.drain_timeout_seconds)
    shutdown.listen()
    facts = await asyncio.to_thread(hardware.detect)
    _log.info(
        'agent %s on "%s", %d GB, %d GPU cores, %.0f GB/s',
        agent_version(),
        facts.chip_name,
        facts.memory_gb,
        facts.gpu_cores,
        facts.memory_bandwidth_gbs,
    )
    slots: dict[str, Slot] = {}
    try:
        for folder in folders:
            slots[folder.id] = await shutdown.unless_draining(load_slot(folder, threads, settings.max_concurrent))
    except AgentStopping:
        _log.info("stopped while loading")
        return shutdown.exit_code
    machine = Machine(identity, facts, hardening, slots, settings.auth_token_path, settings.private_only)
    link = Link(machine, shutdown, settings.coordinator_url, settings.coordinator_address, once=settings.once)
    try:
        await link.run()
    finally:
        for slot in slots.values():
            slot.engine.close()
    _log.info("stopped")
    return shutdown.exit_code


async def load_slot(folder: ModelFolder, threads: Threads, max_concurrent: int) -> Slot:
    """Load a model, measure it, and take the fingerprint of its files.

    Raises:
        ModelRejected: the folder cannot be loaded or served.
    """
    engine = engine_for(folder, threads, max_concurrent)
    loop = asyncio.get_running_loop()
    began = loop.time()
    throughput = await engine.start()
    # On the MLX thread, which nothing else uses yet and which may be left behind when a signal comes now.
    weight_hash = await asyncio.wrap_future(threads.of(folder.kind).call(lambda: models.fingerprint(folder.path)))
    _log.info(
        "%s ready in %.1f s (%.2f GB, %s, context %d; %.0f tokens/s in, %.0f tokens/s out)",
        folder.id,
        loop.time() - began,
        folder.size_bytes / 1e9,
        folder.quantization,
        folder.context_length,
        throughput.prefill_tps,
        throughput.decode_tps,
    )
    offered = OfferedModel(
        id=folder.id,
        size_bytes=folder.size_bytes,
        model_type=folder.model_type,
        quantization=folder.quantization,
        weight_hash=weight_hash,
        context_length=folder.context_length,
        kind=folder.kind,
    )
    return Slot(offered, engine, throughput)
