"""The provider agent: the ``darkbloom`` command that serves models of this machine to a coordinator.

Nothing in here imports ``api``, ``projections`` or the coordinator's adapters; of the project it knows only
``domain.protocol`` and ``adapters.crypto``.
"""
