"""What the gateway tells of itself: metrics, traces, logs. Workers only count and record; the control plane adds up and
exports (`export.py`, the one file here that loads OpenTelemetry's SDK, where an export is configured)."""

from gateway.telemetry.control_metrics import ControlMetrics as ControlMetrics
from gateway.telemetry.exposition import merge_expositions as merge_expositions
from gateway.telemetry.logs import set_up_log as set_up_log
from gateway.telemetry.metrics import Metrics as Metrics
