"""A collector of OpenTelemetry: decodes what it is sent with the messages of OpenTelemetry's own Python package.

Arguments: the port, the file that gets a line of JSON for each span and each export of metrics, and the file that says
how to answer: `ok`, `hang`, `part` (takes the request, but refuses what is in it), or a status.
"""

import gzip
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

port, record, answers = int(sys.argv[1]), sys.argv[2], sys.argv[3]
lock = threading.Lock()


def write(lines):
    with lock, open(record, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def value_of(any_value):
    kind = any_value.WhichOneof("value")
    return getattr(any_value, kind) if kind else None


def mapping(attributes):
    names = [attribute.key for attribute in attributes]
    assert len(names) == len(set(names)), f"twice: {names}"
    return {attribute.key: value_of(attribute.value) for attribute in attributes}


def spans(request):
    for group in request.resource_spans:
        for scoped in group.scope_spans:
            for span in scoped.spans:
                yield {
                    "signal": "traces",
                    "resource": mapping(group.resource.attributes),
                    "scope": [scoped.scope.name, scoped.scope.version],
                    "name": span.name,
                    "kind": Span.SpanKind.Name(span.kind),
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "start": span.start_time_unix_nano,
                    "end": span.end_time_unix_nano,
                    "attributes": mapping(span.attributes),
                    "links": [[link.trace_id.hex(), link.span_id.hex()] for link in span.links],
                    "events": [
                        {"name": event.name, "time": event.time_unix_nano, "attributes": mapping(event.attributes)}
                        for event in span.events
                    ],
                    "status": Status.StatusCode.Name(span.status.code),
                    "message": span.status.message,
                }


def points(metric):
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    for point in data.data_points:
        shown = {
            "attributes": mapping(point.attributes),
            "start": point.start_time_unix_nano,
            "time": point.time_unix_nano,
        }
        if kind == "histogram":
            shown |= {
                "count": point.count,
                "sum": point.sum,
                "buckets": list(point.bucket_counts),
                "bounds": list(point.explicit_bounds),
            }
        else:
            shown["value"] = getattr(point, point.WhichOneof("value"))
        yield shown


def metrics(request):
    for group in request.resource_metrics:
        for scoped in group.scope_metrics:
            shown = {}
            for metric in scoped.metrics:
                assert metric.name not in shown, f"twice: {metric.name}"
                kind = metric.WhichOneof("data")
                data = getattr(metric, kind)
                temporality = getattr(data, "aggregation_temporality", None)
                shown[metric.name] = {
                    "kind": kind,
                    "unit": metric.unit,
                    "monotonic": getattr(data, "is_monotonic", None),
                    "temporality": temporality and AggregationTemporality.Name(temporality),
                    "points": list(points(metric)),
                }
            yield {"signal": "metrics", "resource": mapping(group.resource.attributes), "metrics": shown}


SIGNALS = {
    "/v1/traces": (ExportTraceServiceRequest, ExportTraceServiceResponse, spans),
    "/v1/metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse, metrics),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            status, answer = self.take(body)
        except Exception as error:  # A test reads it.
            write([{"wrong": repr(error)}])
            status, answer = 400, b""
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def take(self, body):
        assert self.headers["Content-Type"] == "application/x-protobuf", self.headers["Content-Type"]
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request, response, read = SIGNALS[self.path]
        lines = list(read(request.FromString(body)))
        assert lines, "nothing is in it"
        headers = {name.lower(): value for name, value in self.headers.items()}
        with open(answers, encoding="utf-8") as file:
            manner = file.read().strip()
        taken = [line | {"headers": headers, "manner": manner} for line in lines]
        if manner == "hang":
            write(taken)
            time.sleep(3600)
        write(taken)
        answer = response()
        if manner == "part":
            field = "rejected_spans" if self.path == "/v1/traces" else "rejected_data_points"
            setattr(answer.partial_success, field, len(lines))
            answer.partial_success.error_message = "a part is refused"
        status = int(manner) if manner.isdigit() else 200
        return status, answer.SerializeToString() if status == 200 else b""

    def log_message(self, *_):
        pass


ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
