"""Reports on .tflite files: accuracy, size and latency, as HTML, Markdown and JSON.

`write_report` is of files that were scored and measured at once, as by kapps-demo; `read_overview`
and `write_overview` join the results of several programs, devices and models, as kapps-report does.
Both fill the one page of `kapps.tflite.report.page`.
"""

from kapps.tflite.report.overview import Overview, read_overview, write_overview
from kapps.tflite.report.rows import Confusion, Row, write_report

__all__ = ["Confusion", "Overview", "Row", "read_overview", "write_overview", "write_report"]
