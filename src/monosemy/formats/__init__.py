"""Other people's files, one module a format."""

from monosemy.formats.format import Content, Format, Given
from monosemy.formats.load import FORMATS, export, load

__all__ = ["FORMATS", "Content", "Format", "Given", "export", "load"]
