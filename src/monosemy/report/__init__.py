"""Pictures and pages: feature cards, tables for the terminal, and a run's report."""

from monosemy.report.build import Report, report_run
from monosemy.report.card import card_html
from monosemy.report.notebook import Book, Card, features
from monosemy.report.page import ReportData, write_report

__all__ = [
    "Book",
    "Card",
    "Report",
    "ReportData",
    "card_html",
    "features",
    "report_run",
    "write_report",
]
