package viewersession

import (
	"context"
	"net/url"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
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
// Of the request nothing but the ids of its span go on.
func startMintSpan(ctx context.Context, e errand, endpoint *url.URL) (context.Context, trace.Span) {
	if e.span == nil || !e.span.SpanContext().IsValid() {
		return ctx, trace.SpanFromContext(ctx) // which does nothing
	}
	request := e.span.SpanContext()
	attributes := []attribute.KeyValue{
		semconv.HTTPRequestMethodPost,
		semconv.ServerAddress(endpoint.Hostname()),
		attribute.Bool("viewer_session.renewal", e.renewal),
	}
	if port, err := strconv.Atoi(endpoint.Port()); err == nil {
		attributes = append(attributes, semconv.ServerPort(port))
	}
	options := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindClient),
		trace.WithLinks(trace.Link{SpanContext: request}),
		trace.WithAttributes(attributes...),
	}
	if e.renewal {
		options = append(options, trace.WithNewRoot())
	} else {
		ctx = trace.ContextWithSpanContext(ctx, request)
	}
	return e.span.TracerProvider().Tracer(tracerName).Start(ctx, mintSpanName, options...)
}

// endMintSpan says how the request to the API ended.
func endMintSpan(span trace.Span, status int, result outcome) {
	if status != 0 {
		span.SetAttributes(semconv.HTTPResponseStatusCode(status))
	}
	if result != outcomeOK {
		span.SetAttributes(semconv.ErrorTypeKey.String(string(result)))
		span.SetStatus(codes.Error, string(result))
	}
	span.End()
}
