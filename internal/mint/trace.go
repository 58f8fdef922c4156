package mint

import (
	"context"
	"net/url"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

const (
	tracerName   = "github.com/viewersession/caddy-viewer-session"
	mintSpanName = "viewer_session.mint"
)

// startMintSpan begins a span for one request to the API, if the request that
// led to it is traced (with Caddy's tracing directive). It is a child of that
// request's span and linked to it; a renewal, for which no request waits and
// which outlives it, has a trace of its own and only the link. Nothing in it
// names a document or a user.
//
// Nothing of the request is passed on but the ids of its span.
func startMintSpan(ctx context.Context, request trace.Span, renewal bool, endpoint *url.URL) (context.Context, trace.Span) {
	if request == nil || !request.SpanContext().IsValid() {
		return ctx, trace.SpanFromContext(ctx) // which does nothing
	}
	attributes := []attribute.KeyValue{
		semconv.HTTPRequestMethodPost,
		semconv.ServerAddress(endpoint.Hostname()),
		attribute.Bool("viewer_session.renewal", renewal),
	}
	if port, err := strconv.Atoi(endpoint.Port()); err == nil {
		attributes = append(attributes, semconv.ServerPort(port))
	}
	options := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindClient),
		trace.WithLinks(trace.Link{SpanContext: request.SpanContext()}),
		trace.WithAttributes(attributes...),
	}
	if renewal {
		options = append(options, trace.WithNewRoot())
	} else {
		ctx = trace.ContextWithSpanContext(ctx, request.SpanContext())
	}
	return request.TracerProvider().Tracer(tracerName).Start(ctx, mintSpanName, options...)
}

// endMintSpan says how the request to the API ended.
func endMintSpan(span trace.Span, status int, reason dws.Reason) {
	if status != 0 {
		span.SetAttributes(semconv.HTTPResponseStatusCode(status))
	}
	if reason != "" {
		span.SetAttributes(semconv.ErrorTypeKey.String(string(reason)))
		span.SetStatus(codes.Error, string(reason))
	}
	span.End()
}
