"""Check that the built site works without a network: its pages fetch nothing from elsewhere.

mkdocs build --strict && python -m docs.offline build/site
"""

import html.parser
import pathlib
import sys

FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}


class Fetches(html.parser.HTMLParser):
    """The addresses that a browser fetches when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(FETCHED.get(tag, ""))
        if (address and address.split(":")[0] in ("http", "https")) or (address or "").startswith("//"):
            self.found.append(f"<{tag}> {address}")


def main(site: pathlib.Path) -> int:
    pages = sorted(site.rglob("*.html"))
    bad = 0
    for page in pages:
        fetches = Fetches()
        fetches.feed(page.read_text(encoding="utf-8"))
        for address in fetches.found:
            print(f"{page.relative_to(site)}: {address}")
            bad += 1
    for sheet in site.rglob("*.css"):
        if "url(http" in sheet.read_text(encoding="utf-8"):
            print(f"{sheet.relative_to(site)} fetches from elsewhere")
            bad += 1
    print(f"{len(pages)} pages fetch nothing from elsewhere." if not bad else f"{bad} fetches from elsewhere.")
    return 1 if bad or not pages else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
