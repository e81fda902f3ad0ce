"""A browser for the tests of logins: cookies by their rules, forms and links of pages, no scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import unescape
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import httpx2

HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)">')
TLS = httpx2.create_ssl_context()
REFRESH = re.compile(r'<meta http-equiv="refresh" content="0; url=([^"]*)">')


@dataclass(eq=False)
class Browser:
    """One browser that visits one site, and others by absolute addresses.

    Attributes:
        site: the address of the site in the browser.
        server: the address where the site's server really listens.
        cookies: the site's cookies: values and attributes.
    """

    site: str
    server: str
    cookies: dict[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    came_from_elsewhere: bool = False

    def get(self, url: str, **options: Any) -> httpx2.Response:
        """Visit a page, without following a redirect."""
        return self.request("GET", url, **options)

    def post(self, url: str, fields: Mapping[str, str], **options: Any) -> httpx2.Response:
        """Send a form, without following a redirect."""
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.request("POST", url, content=urlencode(fields), headers=form, **options)

    def request(self, method: str, url: str, **options: Any) -> httpx2.Response:
        """Send a request with the cookies of the site, and keep those of the answer."""
        url = urljoin(self.site, url)
        own = url.startswith(f"{self.site}/")
        headers = {"Host": urlsplit(self.site).netloc, **self._cookie_header()} if own else {}
        headers |= self.headers | options.pop("headers", {})
        address = self.server + url.removeprefix(self.site) if own else url
        with httpx2.Client(trust_env=False, timeout=30, verify=TLS) as http:
            response = http.request(method, address, headers=headers, **options)
        if own:
            self._keep(response)
        return response

    def follow(self, response: httpx2.Response) -> httpx2.Response:
        """Follow redirects and pages that lead on, as a browser does with its cookies.

        After a redirect from another site, the strict ones are not sent.
        """
        for _ in range(10):
            if response.status_code == 303 or response.status_code == 302:
                target = urljoin(
                    str(response.request.url).replace(self.server, self.site), response.headers["location"]
                )
                self.came_from_elsewhere |= not target.startswith(f"{self.site}/")
            elif response.status_code == 200 and (led := REFRESH.search(response.text)):
                target = urljoin(self.site, unescape(led[1]))
                self.came_from_elsewhere = False
            else:
                return response
            response = self.get(target)
        raise AssertionError("redirected too often")

    def log_in(self, key: str, **fields: str) -> httpx2.Response:
        """Fill in the form of the login, and return the answer to it."""
        form = self.get("/login")
        assert form.status_code == 200, form.text
        return self.post("/login", {**hidden(form.text), "key": key, **fields})

    def csrf_token(self) -> str:
        """Return the CSRF token of the open login, from the page of the account."""
        return hidden(self.get("/account").text)["csrf_token"]

    def attributes(self, name: str) -> Mapping[str, str]:
        """Return the attributes of a cookie."""
        return self.cookies[name][1]

    def _cookie_header(self) -> dict[str, str]:
        sent = [
            f"{name}={value}"
            for name, (value, attributes) in self.cookies.items()
            if not (self.came_from_elsewhere and attributes["samesite"].lower() == "strict")
        ]
        return {"Cookie": "; ".join(sent)} if sent else {}

    def _keep(self, response: httpx2.Response) -> None:
        for line in response.headers.get_list("set-cookie"):
            for name, morsel in SimpleCookie(line).items():
                if morsel["max-age"] == "0":
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value, dict(morsel)


def hidden(page: str) -> dict[str, str]:
    """Return the hidden fields of a page's form."""
    return {name: unescape(value) for name, value in HIDDEN.findall(page)}
