"""Namespaces."""

from __future__ import annotations

from aiocontainerd import api
from aiocontainerd.interfaces.metadata import Namespace


def namespace_from_wire(message: api.namespaces.Namespace | None) -> Namespace:
    """Return the record of a namespace; one without name where the field is absent."""
    return Namespace("") if message is None else Namespace(message.name, message.labels)


def namespace_to_wire(namespace: Namespace) -> api.namespaces.Namespace:
    """Return the message of a namespace."""
    return api.namespaces.Namespace(name=namespace.name, labels=dict(namespace.labels))
