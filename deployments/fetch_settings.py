"""The section `image_loader.fetch`, and StrictModel, the base of all sections of the settings."""

# No `from __future__ import annotations` here either: see deployments/settings.py.
import ipaddress
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.images.address_policy import is_well_formed_host
from pipeline.images.fetch import FetchPolicy

_FETCH = FetchPolicy()


class StrictModel(BaseModel):
    """Refuses unknown keys, so that a misspelt key is not silently ignored, and infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def _host(text: str) -> str:
    if not is_well_formed_host(text.lower().removeprefix(".")):
        raise ValueError(f"{text!r} is not a host name; expected a name as in a URL, without scheme, port, path or *")
    return text


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{error}; expected a network such as 10.2.0.0/16") from error
    return text


class FetchSettings(StrictModel):
    """How image URLs are fetched. Private and special addresses are refused unless allowed here."""

    connect_timeout_s: float = Field(
        _FETCH.connect_timeout_s, gt=0, description="Longest time for DNS and connecting, and again for TLS, seconds."
    )
    read_timeout_s: float = Field(
        _FETCH.read_timeout_s, gt=0, description="Longest time without a byte from the server, seconds."
    )
    total_timeout_s: float = Field(
        _FETCH.total_timeout_s, gt=0, description="Longest time for one URL, including redirects and retries, seconds."
    )
    max_redirects: int = Field(_FETCH.max_redirects, ge=0, description="Maximum number of redirects that are followed.")
    retries: int = Field(_FETCH.retries, ge=0, description="Retries after a connection error or status 502, 503 or 504.")
    allowed_ports: tuple[Annotated[int, Field(ge=1, le=65_535)], ...] = Field(
        _FETCH.allowed_ports, description="TCP ports that URLs may use."
    )
    allowed_hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        _FETCH.allowed_hosts,
        description="Host names that may have private addresses; .example.net allows all names below example.net.",
    )
    allowed_networks: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        _FETCH.allowed_networks, description="Private networks (CIDR) that are allowed, such as 10.2.0.0/16."
    )
    ca_file: str | None = Field(
        _FETCH.ca_file,
        min_length=1,
        description="PEM file with the certificate authorities trusted for https instead of the public ones; must be on every node.",
    )
