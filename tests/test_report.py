"""The report and its cards: what they show, that they hold together, that nothing escapes."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from monosemy.errors import UserError
from monosemy.evaluation import SuiteResult, Table
from monosemy.index.view import Exemplar, FeatureView
from monosemy.intervene.pair import SteeringPair
from monosemy.metrics.table import MetricRow, MetricValue
from monosemy.report import numbers, svg, terminal
from monosemy.report.card import card_html
from monosemy.report.page import ReportData, report_html, split_pair, write_report
from monosemy.report.tokens import peak_tokens, seen_tokens, visible

HOSTILE = ["</script>", "<b>bold</b>", '"><img src=x onerror=alert(1)>', "</style>", "{{ 7 * 7 }}"]
CODE = ["def", " read", "(", "path", "):\n    ", '"""', "Read", ".\n\n\n", "\t", "return", " x"]


def feature(tokens: list[str] = CODE, *, id: int = 28, peak: int = 0) -> FeatureView:
    activations = [0.0] * len(tokens)
    activations[peak] = 8.0
    activations[(peak + 1) % len(tokens)] = 2.0
    exemplar = Exemplar("json/decoder.py", tokens, activations, peak)
    return FeatureView(
        id=id,
        density=0.0042,
        max=8.0,
        mean_active=3.1,
        n_tokens=123_456,
        histogram=([0.0, 2.0, 4.0, 8.0], [400, 20, 1]),
        exemplars=[exemplar] * 7,
        promoted=[(" self", 2.5), ("\n        ", 1.0)],
        suppressed=[(tokens[0], -1.5)],
    )


def report(views: list[FeatureView] | None = None, text: str = "plain") -> ReportData:
    tokens = list(range(0, 3_000_000, 10_000))
    values = [100 / (1 + n) for n in range(len(tokens))]
    fvu = MetricValue(0.2134, 0.2091, 0.2177)
    pca = MetricValue(0.3120, 0.3060, 0.3186)
    return ReportData(
        title=f"Report {text}",
        run={"model": "builtin:stdlib", "hook point": "layers.2", text: text},
        curves={
            "FVU": (tokens, values),
            "dead share": (tokens, [0.01] * len(tokens)),
            text: ([], []),
        },
        columns=["dictionary", "PCA-32", text],
        rows=[
            MetricRow("FVU", "", "lower", text, [fvu, pca, None]),
            MetricRow("loss recovered", "share", "higher", text, [fvu, pca, pca]),
        ],
        verdict=f"The dictionary wins. {text}",
        features=views if views is not None else [feature(), feature(HOSTILE, id=7)],
        steering=[SteeringPair(28, 2.0, text, f"{text} return x", f"{text} raise")],
        commands=[f"monosemy features runs/demo # {text}"],
    )


class Page(HTMLParser):
    """What a browser makes of a page: its elements, and the text of each highlighted token."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[tuple[str, str]] = []
        self._open: list[bool] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "span":
            is_token = "ms-t" in (attributes.get("class") or "").split()
            self._open.append(is_token)
            if is_token:
                self.tokens.append(("", attributes["data-a"] or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if any(self._open):
            text, activation = self.tokens[-1]
            self.tokens[-1] = (text + data, activation)


def test_the_page_refers_to_nothing_outside_itself():
    html = report_html(report())
    assert not re.search(r"""https?://|//\w|@import|url\(""", html)
    for _, attributes in Page(html).elements:
        assert "src" not in attributes and "srcset" not in attributes
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    assert "default-src 'none'" in html


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_harmless_wherever_it_stands(text):
    def shape(word: str) -> list[tuple[str, list[str]]]:
        page = Page(report_html(report([feature([word] * 3)], word)))
        return [(tag, sorted(attributes)) for tag, attributes in page.elements]

    assert shape(text) == shape("plain")
    assert text not in card_html(feature([text])).replace("</style>", "", 1) or "<" not in text


@pytest.mark.parametrize("peak", range(len(CODE)))
def test_each_token_is_shown_whole_with_its_own_activation(peak):
    view = feature(CODE, peak=peak)
    first = Page(card_html(view)).tokens[: len(CODE)]
    assert [text for text, _ in first] == CODE
    assert [float(shown) for _, shown in first] == view.exemplars[0].activations


def test_intensity_is_proportional_to_activation():
    shares = [t.share for t in seen_tokens(feature().exemplars[0], 8.0)]
    assert shares[:3] == [1.0, 0.25, 0.0]
    html = card_html(feature())
    assert "--a:1.000" in html and "--a:0.250" in html


def test_the_peak_and_only_the_peak_is_marked():
    marks = [t.is_peak for t in seen_tokens(feature(peak=4).exemplars[0], 8.0)]
    assert [i for i, is_peak in enumerate(marks) if is_peak] == [4]


def test_line_breaks_are_kept_but_blank_lines_are_folded():
    tokens = seen_tokens(feature().exemplars[0], 8.0)
    kinds = [piece.kind for token in tokens for piece in token.pieces]
    assert kinds.count("newline") == 2 and kinds.count("fold") == 2
    assert [p.kind for p in tokens[4].pieces] == ["text", "newline", "indent"]


def test_a_line_break_before_one_of_the_next_token_is_folded():
    exemplar = Exemplar("a.py", ["a\n", "\nb"], [0.0, 1.0], 1)
    kinds = [[p.kind for p in token.pieces] for token in seen_tokens(exemplar, 1.0)]
    assert kinds == [["text", "fold"], ["newline", "text"]]


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" self", "·self"),
        (":\n        ", ":↵·\N{MULTIPLICATION SIGN}8"),
        ("\t", "→"),
        ("\u200b", "U+200B"),
        ("\u202e", "U+202E"),
        ("\x00", "U+0000"),
        ("\ud800", "U+D800"),
        ("", "∅"),
        ("naïve", "naïve"),
    ],
)
def test_every_token_has_a_shape(token, shown):
    assert visible(token) == shown


def test_characters_that_would_turn_the_text_around_are_shown_by_code():
    html = card_html(feature(["\u202e", "abc"]))
    assert "\u202e" not in html and "U+202E" in html


def test_peak_tokens_are_counted():
    assert peak_tokens(feature()) == [("def", 7)]


def test_a_card_is_a_fragment_whose_style_touches_only_itself():
    html = card_html(feature())
    style = html[len("<style>") : html.index("</style>")]
    selectors = re.findall(r"([^{}]+)\{", re.sub(r"@container[^{]*", "", style))
    assert all(".ms-card" in part for s in selectors if s.strip() for part in s.split(","))
    assert "<html" not in html and "<body" not in html


def test_a_feature_that_never_fires_has_a_card():
    dead = FeatureView(3, 0.0, 0.0, 0.0, 1000, ([], []), [], [], [])
    assert "fired on none" in card_html(dead)
    assert render(terminal.feature_panel(dead)) and render(terminal.feature_table([dead]))


def test_parts_without_data_are_left_out():
    html = report_html(ReportData("Empty"))
    assert "<h2>" not in html and "<nav" in html


def test_the_page_is_the_same_for_the_same_data():
    assert report_html(report()) == report_html(report())


def test_the_report_is_written_even_with_half_a_surrogate_pair(tmp_path):
    path = write_report(report(text="\ud83d"), tmp_path / "new" / "report.html")
    assert path.read_text("utf-8").startswith("<!doctype html>")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write_report(report(), tmp_path)


def test_best_marks_what_the_interval_does_not_tell_apart():
    values = [MetricValue(0.20, 0.18, 0.22), MetricValue(0.21, 0.19, 0.23), None]
    values.append(MetricValue(0.5, 0.4, 0.6))
    cells = numbers.metric_cells(MetricRow("FVU", "", "lower", "", values))
    assert [cell and cell.best for cell in cells] == [True, True, None, False]


@pytest.mark.parametrize(
    ("unit", "shown"), [("", ("0.213", "0.209 to 0.218")), ("share", ("21.3%", "20.9% to 21.8%"))]
)
def test_metric_cells_show_what_the_interval_deserves(unit, shown):
    row = MetricRow("x", unit, "lower", "", [MetricValue(0.2134, 0.2091, 0.2177)])
    (cell,) = numbers.metric_cells(row)
    assert cell is not None and (cell.value, cell.interval) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0, "0%"),
        (0.0042, "0.42%"),
        (0.104, "10%"),
        (0.00012, "0.012%"),
        (1, "100%"),
        (2e-8, "2e-6%"),
    ],
)
def test_percentages_never_hide_a_rare_event(share, shown):
    assert numbers.percent(share) == shown


def test_values_that_are_not_numbers_are_not_drawn():
    nan = float("nan")
    assert svg.draw_curve("FVU", [1, 2], [nan, nan]) is None
    curve = svg.draw_curve("FVU", [1, 2, 3], [1.0, nan, 0.5])
    assert curve is not None and "nan" not in curve.svg
    row = MetricRow("x", "", "lower", "", [MetricValue(nan, nan, nan), MetricValue(1, 1, 1)])
    assert numbers.metric_cells(row)[0].value == numbers.MISSING  # type: ignore[union-attr]
    assert "nan" not in svg.draw_intervals(row.values)


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [3.0, 3.0], [-1.0, 2.0], [1e-9, 1e9]])
def test_any_curve_can_be_drawn(values):
    curve = svg.draw_curve("loss", list(range(len(values))), values)
    assert curve is not None and curve.y_ticks
    assert all(0 <= tick.place <= 100 for tick in curve.y_ticks)


def test_an_axis_is_logarithmic_only_where_that_serves():
    assert svg.Axis.around([0.4, 40.0], log_from=20).is_log
    assert not svg.Axis.around([0.4, 4.0], log_from=20).is_log
    assert not svg.Axis.around([0.0, 40.0], log_from=20).is_log


def test_what_a_steering_pair_shares_ends_between_words():
    pair = SteeringPair(1, 2.0, "def f():", "\n    return x", "\n    raise")
    assert split_pair(pair) == ("\n    ", "return x", "raise")
    same = SteeringPair(1, 0.0, "", "return", "return")
    assert split_pair(same) == ("return", "", "")


def render(renderable, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(renderable)
    return console.export_text()


def test_the_terminal_shows_tokens_as_they_are_and_reads_no_markup():
    view = feature(["[bold]", "x", "[/red]"])
    text = render(terminal.feature_panel(view))
    assert "[bold]x[/red]" in text and "json/decoder.py" in text
    assert "[bold]" in render(terminal.feature_table([view]))


@pytest.mark.parametrize("width", [60, 80, 140])
def test_terminal_pictures_fit_the_width(width):
    data = report()
    pictures = [
        terminal.feature_table(data.features),
        terminal.feature_panel(data.features[0]),
        terminal.figures_table(Table(data.columns, data.rows)),
        terminal.steering_panel(data.steering[0]),
    ]
    for picture in pictures:
        assert max(map(len, render(picture, width).splitlines())) <= width


def told(data: ReportData) -> SuiteResult:
    return SuiteResult("s", "S", [Table(data.columns, data.rows)], data.verdict)


def test_the_terminal_shows_metrics_with_intervals_and_verdict():
    text = render(terminal.suite_tables(told(report())))
    assert "0.213" in text and "0.209 to 0.218" in text and "The dictionary wins." in text


# --- in a browser ------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")

MEASURE = """<script>addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5 && !e.closest("svg"))
    .map(e => e.tagName + "." + e.className);
  parent.document.title = JSON.stringify([innerWidth, document.documentElement.scrollWidth, wide]);
})</script>"""


def browse(path: Path, profile: Path) -> tuple[str, str]:
    """The page's DOM after loading, and everything the browser had to say."""
    done = subprocess.run(
        [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", f"--user-data-dir={profile}", "--hide-scrollbars"),
            *("--window-size=1300,1600", "--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout, done.stderr


@needs_browser
@pytest.mark.parametrize("width", [390, 901, 1200])
def test_nothing_is_wider_than_the_screen(width, tmp_path):
    long = ["x" * 300, " " * 90, "\n" + " " * 60, "a_" * 120]
    html = report_html(report([feature(), feature(long, id=9)], "word " * 9 + "w" * 80))
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    html = policy.sub("", html).replace("</body>", f"{MEASURE}</body>")
    # A window cannot be as narrow as a phone, a frame in it can.
    frame = f'<iframe style="width:{width}px;border:0" srcdoc="{escape(html)}"></iframe>'
    path = tmp_path / "frame.html"
    path.write_text(f'<!doctype html><meta charset="utf-8"><title>-</title>{frame}', "utf-8")
    dom, _ = browse(path, tmp_path / "profile")
    assert dom.partition("</title>")[0].partition("<title>")[2] == f"[{width},{width},[]]"


@needs_browser
def test_the_browser_finds_nothing_to_complain_about(tmp_path):
    path = write_report(report([feature(HOSTILE)], HOSTILE[2]), tmp_path / "report.html")
    dom, said = browse(path, tmp_path / "profile")
    assert "ms-card" in dom and "CONSOLE" not in said
