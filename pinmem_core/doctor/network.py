"""Check of the network."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from pinmem_core.doctor.findings import Finding, Section

_SECONDS = 10
"""Seconds to wait for a site."""


def network_sites() -> dict[str, str]:
    """Return addresses of files by name: the Hub, torchvision's weights, and each dataset."""
    from huggingface_hub import constants

    from pinmem_core.data.catalog import cards

    sites = {
        "the Hub": constants.ENDPOINT,
        "torchvision's weights": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    }
    for name, card in cards().items():
        address = next((url for archive in card.archives for url in archive.url), None)
        if address:
            sites[name] = address
    return sites


def check_network(sites: Mapping[str, str] | None = None) -> Section:
    """Check that each site answers. The result holds no addresses.

    Args:
        sites: Addresses by name; None for `network_sites()`.
    """
    sites = network_sites() if sites is None else sites
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(sites, pool.map(_answer, sites.values()), strict=True))
    findings = [
        Finding(
            f"{name}: the site cannot be used: {answer}.",
            "Check the network, and HTTPS_PROXY if yours needs a proxy; or try again later.",
        )
        for name, answer in answers.items()
        if not answer.startswith("ok")
    ]
    return Section(answers, findings)


def _answer(address: str) -> str:
    """Return "ok" or why a site does not give the file at an address."""
    import requests

    from pinmem_core.data.http_range import new_session

    try:
        with new_session() as session:
            response = session.get(address, timeout=_SECONDS, stream=True)
            status = response.status_code
    except requests.exceptions.SSLError:
        return "its certificate is not valid"
    except requests.exceptions.ProxyError:
        return "the proxy does not answer"
    except requests.Timeout:
        return f"no answer within {_SECONDS} s"
    except requests.RequestException:
        return "no connection"
    # 401 and 403: the site wants a login first.
    return "ok" if status < 500 and status not in (404, 410) else f"HTTP status {status}"
