"""Which hosts and addresses are public."""

import ipaddress

import pytest

from pipeline.errors import ConfigurationError
from pipeline.images.address_policy import AddressPolicy, is_public, is_well_formed_host

PUBLIC = ["8.8.8.8", "93.184.216.34", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "223.255.255.255"]
PUBLIC += ["2606:4700:4700::1111", "2a00:1450:4001:80b::200e", "2400:cb00::1"]

NOT_PUBLIC = ["0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.255"]
NOT_PUBLIC += ["168.63.129.16", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1"]
NOT_PUBLIC += ["192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1"]
NOT_PUBLIC += ["239.255.255.250", "240.0.0.1", "255.255.255.255"]
NOT_PUBLIC += ["::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:7f00:1", "64:ff9b::7f00:1"]
NOT_PUBLIC += ["64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:10::1", "2001:20::1"]
NOT_PUBLIC += ["2001:db8::1", "2002:7f00:1::1", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254"]
NOT_PUBLIC += ["fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "ff0e::1", "4000::1"]


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    """Addresses of the public internet, also right beside private networks."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_not_public(address: str) -> None:
    """Every special-purpose class, and every IPv6 form that embeds an IPv4 address."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host", ["example.com", "a-b.c_d.example", "localhost", "1.2.3.4", "::1", "xn--bcher-kva.de", "h.", "1a"]
)
def test_well_formed(host: str) -> None:
    """Plain names and usual addresses; whether they may be reached is judged by address."""
    assert is_well_formed_host(host)


ODD_HOSTS = ["", ".", "a..b", "-a.com", "a-.com", "a b", "a%20b", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1"]
ODD_HOSTS += ["1.2.3.4.", "1.2.3.4.5", "256.1.1.1", "example.0x1", "example.1", "fe80::1%eth0", "::1%1", "a:b", "A.com", "é.com"]
ODD_HOSTS += ["a" * 64 + ".com", "a." * 127 + "com", "ex\\ample.com", "[::1]", "0x", "example.com..", "1.2.3"]


@pytest.mark.parametrize("host", ODD_HOSTS)
def test_not_well_formed(host: str) -> None:
    """Odd characters, over-long labels, and unusual spellings of addresses."""
    assert not is_well_formed_host(host)


def test_exceptions_of_the_operator() -> None:
    """Listed networks and hosts are allowed, and nothing beside them."""
    policy = AddressPolicy.from_text(("10.1.0.0/16", "fd00::/8"), ("Files.internal.", ".corp.example", "127.0.0.1"))
    assert policy.permits("anything.example", "10.1.2.3")
    assert policy.permits("anything.example", "fd00::1")
    assert not policy.permits("anything.example", "10.2.0.1")
    assert policy.permits("files.internal", "192.168.0.1")
    assert policy.permits("FILES.internal.", "192.168.0.1")
    assert not policy.permits("evilfiles.internal", "192.168.0.1")
    assert policy.permits("a.corp.example", "192.168.0.1")
    assert not policy.permits("corp.example", "192.168.0.1")
    assert not policy.permits("acorp.example", "192.168.0.1")
    assert policy.permits("127.0.0.1", "127.0.0.1")
    assert not policy.permits("localhost", "127.0.0.1")
    assert not policy.permits("localhost", "no address")


def test_bad_network_is_a_configuration_error() -> None:
    """A network with host bits set or nonsense stops the start."""
    with pytest.raises(ConfigurationError, match="allowed_networks"):
        AddressPolicy.from_text(("10.0.0.1/8",), ())


@pytest.mark.parametrize(
    ("networks", "address", "permitted"),
    [
        (("64:ff9b::/96",), "64:ff9b::8.8.8.8", True),
        (("64:ff9b::/96",), "64:ff9b::169.254.169.254", False),
        (("64:ff9b::/96",), "64:ff9b::10.0.0.1", False),
        (("64:ff9b::/96", "10.0.0.0/8"), "64:ff9b::10.0.0.1", True),
        (("64:ff9b:1::/48",), "64:ff9b:1::127.0.0.1", False),
        (("::ffff:0:0/96",), "::ffff:169.254.169.254", False),
        (("2002::/16",), "2002:a9fe:a9fe::1", False),
        (("2002::/16",), "2002:808:808::1", True),
        (("2001::/32",), "2001:0:808:808::5601:5601", False),  # Teredo keeps the client's address inverted: 169.254.169.254
        (("::/0",), "64:ff9b::127.0.0.1", False),
    ],
)
def test_an_address_that_carries_another_is_judged_by_both(networks, address, permitted):
    """An operator's translator (NAT64, 6to4, …) opens the public internet behind it, and nothing inside."""
    assert AddressPolicy.from_text(networks, ()).permits("photos.example", address) is permitted
