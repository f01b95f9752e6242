"""The admin page: one HTML document that holds its style and script, and the headers that let nothing else run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

STYLE = "/* style */"
SCRIPT = "/* script */"


@dataclass(frozen=True)
class AdminPage:
    html: str
    headers: Mapping[str, str]

    @classmethod
    def load(cls) -> AdminPage:
        """Puts `admin_page.html`, `.css` and `.js`, `admin_routing.js` and `admin_finance.js` together."""
        folder = files("gateway.api")
        page, style, *scripts = (
            folder.joinpath(name).read_text(encoding="utf-8")
            for name in ("admin_page.html", "admin_page.css", "admin_page.js", "admin_routing.js", "admin_finance.js")
        )
        script = "\n".join(scripts)
        html = page.replace(STYLE, style).replace(SCRIPT, script)
        return cls(html, headers(style, script))


def headers(style: str, script: str) -> dict[str, str]:
    """Only this very style and script may run, and speak only to where the page came from (CSP level 3)."""
    policy = [
        "default-src 'none'",
        f"style-src '{digest(style)}'",
        f"script-src '{digest(script)}'",
        "connect-src 'self'",
        "img-src data:",  # the icon
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # text stays text: the browser refuses to parse a string as HTML
        "trusted-types 'none'",
    ]
    return {
        "content-security-policy": "; ".join(policy),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
