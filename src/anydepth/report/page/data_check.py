"""The page of a checked data set: one HTML file without scripts, requests or other files."""

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from anydepth.data.check.dataset import CheckedDataset
from anydepth.data.check.findings import MAX_EXAMPLES, Finding

_PACKAGE = "anydepth.report.page"


def render_data_check(checked: CheckedDataset, title: str) -> str:
    """Return the page of a checked data set as the text of one HTML file.

    Args:
        checked: What was found; names in it come from untrusted files and are escaped.
        title: Name of the data set.
    """
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = (files(_PACKAGE) / "assets" / "page.css").read_text(encoding="utf-8")
    return environment.get_template("data_check.html.j2").render(
        title=title,
        checked=checked,
        problems=_of_severity(checked.all_findings, "problem"),
        doubts=_of_severity(checked.all_findings, "doubt"),
        css=Markup(css),
        max_examples=MAX_EXAMPLES,
    )


def _of_severity(findings: Sequence[Finding], severity: str) -> list[Finding]:
    return [finding for finding in findings if finding.severity == severity]
