package viewersession

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// withSpans tests a pool with a request that is traced.
func withSpans(t *testing.T, test func(t *testing.T, p *poolTest, ctx context.Context, request trace.SpanContext, sent *http.Header, spans func() tracetest.SpanStubs)) {
	t.Helper()
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		exporter := tracetest.NewInMemoryExporter()
		provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
		ctx, span := provider.Tracer("test").Start(t.Context(), "request")
		sent := new(http.Header)
		p.member.transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			*sent = r.Header.Clone()
			return p.api.RoundTrip(r)
		})
		test(t, p, ctx, span.SpanContext(), sent, func() tracetest.SpanStubs {
			synctest.Wait()
			spans := exporter.GetSpans()
			exporter.Reset()
			return spans
		})
	})
}

func attributesOf(span tracetest.SpanStub) string {
	var all []string
	for _, a := range span.Attributes {
		all = append(all, fmt.Sprintf("%s=%s", a.Key, a.Value.String()))
	}
	return strings.Join(all, " ")
}

func TestMintSpan(t *testing.T) {
	withSpans(t, func(t *testing.T, p *poolTest, ctx context.Context, request trace.SpanContext, sent *http.Header, spans func() tracetest.SpanStubs) {
		a := testClaims("secret-document")
		a.UserID = "alice"
		if _, _, f := p.get(ctx, a); f != nil {
			t.Fatal(f)
		}
		got := spans()
		if len(got) != 1 {
			t.Fatalf("%d spans, want 1", len(got))
		}
		span := got[0]
		if span.Name != "viewer_session.mint" || span.SpanKind != trace.SpanKindClient || span.Parent.SpanID() != request.SpanID() || span.SpanContext.TraceID() != request.TraceID() {
			t.Errorf("%+v is no child of the request's", span)
		}
		if len(span.Links) != 1 || span.Links[0].SpanContext.SpanID() != request.SpanID() {
			t.Errorf("links %v", span.Links)
		}
		want := "http.request.method=POST server.address=" + p.endpoint.Hostname() + " viewer_session.renewal=false http.response.status_code=201"
		if got := attributesOf(span); got != want {
			t.Errorf("attributes %s, want %s", got, want)
		}
		if got, want := sent.Get("Traceparent"), "00-"+span.SpanContext.TraceID().String()+"-"+span.SpanContext.SpanID().String()+"-01"; got != want {
			t.Errorf("traceparent %s, want %s", got, want)
		}
		if text := fmt.Sprint(got); strings.Contains(text, "alice") || strings.Contains(text, "secret-document") || strings.Contains(text, dwstest.Key) {
			t.Errorf("the span tells too much: %s", text)
		}

		// A hit has none.
		if _, _, f := p.get(ctx, a); f != nil || len(spans()) != 0 {
			t.Errorf("%v, or a span for a hit", f)
		}
		// A renewal has a trace of its own, and the link.
		time.Sleep(30 * time.Minute)
		if _, result, f := p.get(ctx, a); f != nil || result != resultRenewing {
			t.Fatalf("%v, %s", f, result)
		}
		got = spans()
		if len(got) != 1 || got[0].Parent.IsValid() || got[0].SpanContext.TraceID() == request.TraceID() || len(got[0].Links) != 1 || got[0].Links[0].SpanContext.SpanID() != request.SpanID() || !strings.Contains(attributesOf(got[0]), "viewer_session.renewal=true") {
			t.Errorf("of a renewal: %+v", got)
		}
	})
}

func TestMintSpanOfFailures(t *testing.T) {
	for _, test := range []struct {
		answer dwstest.Answer
		want   []string
	}{
		{dwstest.Failing(500), []string{"http.response.status_code=500 error.type=unavailable"}},
		{dwstest.Failing(404), []string{"http.response.status_code=404 error.type=rejected"}},
		{dwstest.Hanging, []string{"viewer_session.renewal=false error.type=timeout"}},
		{dwstest.Unreachable, []string{"viewer_session.renewal=false error.type=unavailable", "viewer_session.renewal=false error.type=unavailable"}}, // sent again
	} {
		withSpans(t, func(t *testing.T, p *poolTest, ctx context.Context, _ trace.SpanContext, _ *http.Header, spans func() tracetest.SpanStubs) {
			p.api.Set(test.answer)
			if _, _, f := p.get(ctx, testClaims("doc")); f == nil {
				t.Fatal("no failure")
			}
			got := spans()
			if len(got) != len(test.want) {
				t.Fatalf("%d spans, want %d", len(got), len(test.want))
			}
			for i, span := range got {
				if !strings.HasSuffix(attributesOf(span), test.want[i]) || span.Status.Code.String() != "Error" {
					t.Errorf("attributes %s, status %s, want %s", attributesOf(span), span.Status.Code, test.want[i])
				}
			}
		})
	}
}

// Without tracing there is no header.
func TestNoSpanWithoutTracing(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		var header http.Header
		p.member.transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			header = r.Header.Clone()
			return p.api.RoundTrip(r)
		})
		p.want("doc", resultMinted)
		if len(header["Traceparent"]) != 0 {
			t.Errorf("traceparent %v", header["Traceparent"])
		}
	})
}
