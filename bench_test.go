package viewersession

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// The benchmarks measure the handler alone: the next handler does nothing, and
// requests are made as Caddy makes them, replacer included, outside of what is
// measured.

// nothing is an app that costs nothing.
var nothing = caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })

// instantAPI mints at once, tokens of the size that real ones have.
type instantAPI struct{ mints atomic.Int64 }

var padding = strings.Repeat("x", 560) // makes a token of about 900 bytes

func (api *instantAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	serial := api.mints.Add(1)
	jwt := testJWT(map[string]any{"exp": time.Now().Add(time.Hour).Unix(), "jti": serial, "padding": padding})
	return respond(r, http.StatusCreated, `{"jwt":"`+jwt+`"}`), nil
}

func benchmarkHandler(b *testing.B, directive string) *Handler {
	b.Helper()
	h, err := parseTestHandler(directive)
	if err != nil {
		b.Fatal(err)
	}
	settings, endpoint, err := h.poolSettings()
	if err != nil {
		b.Fatal(err)
	}
	settings.endpoint += "?" + b.Name()
	h.logger = zap.NewNop()
	h.tenant = newTenant(new(instantAPI), nil, h.logger, testKey)
	if h.pool, err = joinPool(settings, endpoint, h.tenant); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { h.pool.leave(h.tenant) })
	return h
}

// caddyRequest is a request as Caddy's server hands it to handlers.
func caddyRequest(path, user string) (http.ResponseWriter, *http.Request) {
	return requestAt(new(caddyhttp.Server), path, user)
}

func requestAt(server *caddyhttp.Server, path, user string) (http.ResponseWriter, *http.Request) {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	// What a browser sends.
	r.Header = http.Header{
		"Accept":                    {"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
		"Accept-Encoding":           {"gzip, deflate, br, zstd"},
		"Accept-Language":           {"en-US,en;q=0.5"},
		"Cookie":                    {"session=0123456789abcdef0123456789abcdef; theme=dark"},
		"Sec-Fetch-Dest":            {"document"},
		"Sec-Fetch-Mode":            {"navigate"},
		"Sec-Fetch-Site":            {"same-origin"},
		"Upgrade-Insecure-Requests": {"1"},
		"User-Agent":                {"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"},
	}
	w := httptest.NewRecorder()
	w.Header().Set("Server", "Caddy")
	repl := caddy.NewReplacer()
	r = caddyhttp.PrepareRequest(r, repl, w, server)
	repl.Set("http.auth.user.id", user)
	return w, r
}

type preparedRequest struct {
	w http.ResponseWriter
	r *http.Request
}

// serveBatches lets the handler serve b.N requests, and measures nothing else.
func serveBatches(b *testing.B, h *Handler, request func(i int) (http.ResponseWriter, *http.Request)) {
	b.Helper()
	b.ReportAllocs()
	batch := make([]preparedRequest, min(b.N, 32)) // so few that they are still in the processor's caches, as in a server
	for done := 0; done < b.N; {
		b.StopTimer()
		size := min(len(batch), b.N-done)
		for i := range size {
			w, r := request(done + i)
			batch[i] = preparedRequest{w, r}
		}
		b.StartTimer()
		for _, p := range batch[:size] {
			if err := h.ServeHTTP(p.w, p.r, nothing); err != nil {
				b.Fatal(err)
			}
		}
		done += size
	}
}

// fill caches so many documents' tokens.
func fill(b *testing.B, h *Handler, tokens int, user string) {
	b.Helper()
	for i := range tokens {
		w, r := caddyRequest(documentPath(i), user)
		if err := h.ServeHTTP(w, r, nothing); err != nil {
			b.Fatal(err)
		}
	}
}

func documentPath(i int) string { return "/documents/doc-" + strconv.Itoa(i) }

const plainDirective = `viewer_session {
	document_path /documents/:id
	mint_rate off
	cache_size 4GiB
}`

func BenchmarkNoViewerRoute(b *testing.B) {
	h := benchmarkHandler(b, plainDirective)
	serveBatches(b, h, func(int) (http.ResponseWriter, *http.Request) { return caddyRequest("/assets/app.js", "") })
}

func BenchmarkHit(b *testing.B) {
	for _, variant := range []struct{ name, options string }{
		{"header", ""},
		{"cookie", "request_cookie viewer_session"},
		{"allow_store", "allow_store"},
		{"user", "user_id {http.auth.user.id}\nclaim team {http.auth.user.id}"},
	} {
		for _, tokens := range []int{100, 1_000_000} {
			if variant.name != "header" && tokens != 100 {
				continue
			}
			b.Run(fmt.Sprintf("%s/tokens=%d", variant.name, tokens), func(b *testing.B) {
				h := benchmarkHandler(b, strings.Replace(plainDirective, "}", variant.options+"\n}", 1))
				fill(b, h, tokens, "ann")
				b.ResetTimer()
				serveBatches(b, h, func(i int) (http.ResponseWriter, *http.Request) {
					return caddyRequest(documentPath(i*7919%tokens), "ann")
				})
				if mints := h.tenant.transport.(*instantAPI).mints.Load(); mints != int64(tokens) {
					b.Errorf("%d mints for %d tokens: not all were hits", mints, tokens)
				}
			})
		}
	}
}

// All cores at once. Making the request is measured as well, so it is measured
// alone for comparison.
func BenchmarkParallel(b *testing.B) {
	for _, tokens := range []int{0, 1, 100} {
		name := fmt.Sprintf("hit/tokens=%d", tokens)
		if tokens == 0 {
			name = "request-alone"
		}
		b.Run(name, func(b *testing.B) {
			h := benchmarkHandler(b, plainDirective)
			fill(b, h, tokens, "")
			var worker atomic.Int64
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := int(worker.Add(1)) * 31; pb.Next(); i++ {
					w, r := caddyRequest(documentPath(i%max(tokens, 1)), "")
					if tokens == 0 {
						continue
					}
					if err := h.ServeHTTP(w, r, nothing); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// A token that is due: the request uses it and starts the renewal, which then
// runs beside the measurement.
func BenchmarkRenewing(b *testing.B) {
	h := benchmarkHandler(b, plainDirective)
	fill(b, h, 1, "")
	key := h.pool.account.Load().cacheKey(string(h.askFor("doc-0").appendKey(nil)))
	serveBatches(b, h, func(int) (http.ResponseWriter, *http.Request) {
		if t := h.pool.cache.get(key); t != nil {
			t.life = 1000 * time.Hour // so that an hour is less than half of it
		}
		return caddyRequest(documentPath(0), "")
	})
}

// askFor is what a request for the document would ask for.
func (h *Handler) askFor(document string) *ask {
	a, _ := h.routes[0].ask.resolve(caddy.NewReplacer(), document)
	return &a
}

// A new document each time, with an API that answers at once.
func BenchmarkMiss(b *testing.B) {
	h := benchmarkHandler(b, plainDirective)
	serveBatches(b, h, func(i int) (http.ResponseWriter, *http.Request) {
		return caddyRequest("/documents/cold-"+strconv.Itoa(i), "")
	})
}
