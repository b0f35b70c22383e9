"""The settings of fetching (`image_loader.fetch`), and what all sections of the settings are made of."""

# No `from __future__ import annotations` here either: see deployments/settings.py.
import ipaddress
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.images.address_policy import is_well_formed_host
from pipeline.images.fetch import FetchPolicy

_FETCH = FetchPolicy()


class StrictModel(BaseModel):
    """Refuses unknown keys, so that a typing error in the YAML is an error and not a default; and infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def _host(text: str) -> str:
    if not is_well_formed_host(text.lower().removeprefix(".")):
        raise ValueError(f"{text!r} is no host name; wanted is one as it stands in URLs, without scheme, port, path or *")
    return text


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{error}; wanted is a network, e.g. 10.2.0.0/16") from error
    return text


class FetchSettings(StrictModel):
    """How image URLs are fetched. Private and special addresses are refused unless listed."""

    connect_timeout_s: float = Field(_FETCH.connect_timeout_s, gt=0)
    read_timeout_s: float = Field(_FETCH.read_timeout_s, gt=0, description="Longest silence while reading, seconds.")
    total_timeout_s: float = Field(
        _FETCH.total_timeout_s, gt=0, description="Everything together, redirects and retries too, seconds."
    )
    max_redirects: int = Field(_FETCH.max_redirects, ge=0)
    retries: int = Field(_FETCH.retries, ge=0, description="Extra tries after errors that a retry can help.")
    allowed_ports: tuple[Annotated[int, Field(ge=1, le=65_535)], ...] = Field(_FETCH.allowed_ports)
    allowed_hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        _FETCH.allowed_hosts, description="Host names whose private addresses may be fetched; with a dot in front all below it."
    )
    allowed_networks: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        _FETCH.allowed_networks, description="CIDR networks that may be fetched although private, e.g. 10.2.0.0/16."
    )
    ca_file: str | None = Field(
        _FETCH.ca_file,
        min_length=1,
        description="PEM file, on every node, of the certificate authorities trusted for https instead of the public ones.",
    )
