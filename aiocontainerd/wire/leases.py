"""Leases and what they hold."""

from __future__ import annotations

from aiocontainerd import api
from aiocontainerd.interfaces.metadata import Lease, Resource
from aiocontainerd.wire.times import time_from_wire, time_to_wire


def lease_from_wire(message: api.leases.Lease) -> Lease:
    """Return the record of a lease."""
    return Lease(id=message.id, created_at_ns=time_from_wire(message.created_at), labels=message.labels)


def lease_to_wire(lease: Lease) -> api.leases.Lease:
    """Return the message of a lease."""
    return api.leases.Lease(id=lease.id, created_at=time_to_wire(lease.created_at_ns), labels=dict(lease.labels))


def resource_from_wire(message: api.leases.Resource) -> Resource:
    """Return the record of something that a lease holds."""
    return Resource(message.id, message.type)


def resource_to_wire(resource: Resource) -> api.leases.Resource:
    """Return the message of something that a lease holds."""
    return api.leases.Resource(id=resource.id, type=resource.type)
