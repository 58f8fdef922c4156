package viewersession

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// The benchmarks measure the handler alone: the next handler does nothing, and
// requests are made as Caddy makes them, replacer included, outside of what is
// measured.

// nothing is an app that costs nothing.
var nothing = caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })

// instantAPI mints at once, tokens of 830 to 960 bytes: the allocator rounds up
// in steps of 128, and so they fit neither well nor badly.
type instantAPI struct{ mints atomic.Int64 }

var padding = strings.Repeat("x", 640)

func (api *instantAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	serial := api.mints.Add(1)
	jwt := dwstest.JWT(map[string]any{"exp": time.Now().Add(time.Hour).Unix(), "jti": serial, "padding": padding[serial%96:]})
	return dwstest.Grant(jwt)
}

// instantHandler joins a pool of its own at an API that answers at once.
func instantHandler(tb testing.TB, directive string) *Handler {
	tb.Helper()
	h, err := parseTestHandler(directive)
	if err != nil {
		tb.Fatal(err)
	}
	settings, endpoint, err := h.settings()
	if err != nil {
		tb.Fatal(err)
	}
	settings.endpoint += "?" + tb.Name()
	h.logger = zap.NewNop()
	h.member = newMember(new(instantAPI), nil, h.logger, dwstest.Key)
	if h.pool, err = joinPool(settings, endpoint, h.member, clock.Now); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := h.pool.leave(h.member); err != nil {
			tb.Error(err)
		}
	})
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

// preparedRequest can be served again and again.
type preparedRequest struct {
	w    http.ResponseWriter
	r    *http.Request
	repl *caddy.Replacer
	then caddy.Replacer // as it was before
	vars map[string]any
}

func prepare(path, user string) *preparedRequest {
	w, r := caddyRequest(path, user)
	p := &preparedRequest{w: w, r: r}
	p.repl = r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	p.then = *p.repl
	p.vars = r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	return p
}

// again takes off what the handler leaves on a request.
func (p *preparedRequest) again() {
	*p.repl = p.then
	delete(p.vars, requestInfoKey)
	delete(p.w.Header(), "Cache-Control")
}

// serve lets the handler serve b.N requests, each of a number of them in turn,
// and reports what it takes. What it leaves on them is taken off in between,
// outside of the measurement. Headers are those that it keeps of a browser's
// nine, if any are given.
func serve(b *testing.B, h *Handler, requests int, path func(i int) string, headers ...string) {
	b.Helper()
	prepared := make([]*preparedRequest, requests)
	for i := range prepared {
		prepared[i] = prepare(path(i), "ann")
		if headers != nil {
			maps.DeleteFunc(prepared[i].r.Header, func(name string, _ []string) bool { return !slices.Contains(headers, name) })
		}
	}
	const round = 100 // one clock reading is nothing beside them
	var took time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; {
		first := done % requests
		batch := prepared[first:min(first+round, first+b.N-done, requests)]
		start := time.Now()
		for _, p := range batch {
			if err := h.ServeHTTP(p.w, p.r, nothing); err != nil {
				b.Fatal(err)
			}
		}
		took += time.Since(start)
		for _, p := range batch {
			p.again()
		}
		done += len(batch)
	}
	b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/op")
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
	cache_size 1500MiB
}`

func BenchmarkNoViewerRoute(b *testing.B) {
	for name, headers := range map[string][]string{"browser": nil, "script": scriptHeaders} {
		b.Run(name, func(b *testing.B) {
			h := instantHandler(b, plainDirective)
			serve(b, h, 100, func(int) string { return "/assets/app.js" }, headers...)
		})
	}
}

// scriptHeaders are those that curl sends: the look at each name is cheaper.
var scriptHeaders = []string{"Accept", "Accept-Encoding", "User-Agent"}

func BenchmarkHit(b *testing.B) {
	for _, variant := range []struct {
		name, options string
		tokens        int
		headers       []string
	}{
		{"header", "", 100, nil},
		{"header", "", 1_000_000, nil},
		{"script", "", 100, scriptHeaders},
		{"cookie", "request_cookie viewer_session", 100, nil},
		{"allow_store", "allow_store", 100, nil},
		{"user", "user_id {http.auth.user.id}\nclaim team {http.auth.user.id}", 100, nil},
	} {
		b.Run(fmt.Sprintf("%s/tokens=%d", variant.name, variant.tokens), func(b *testing.B) {
			h := instantHandler(b, strings.Replace(plainDirective, "}", variant.options+"\n}", 1))
			fill(b, h, variant.tokens, "ann")
			requests := min(variant.tokens, 10_000)
			serve(b, h, requests, func(i int) string { return documentPath(i * (variant.tokens / requests)) }, variant.headers...)
			b.StopTimer()
			if mints := h.member.transport.(*instantAPI).mints.Load(); mints != int64(variant.tokens) {
				b.Errorf("%d mints for %d tokens: not all were hits", mints, variant.tokens)
			}
		})
	}
}

// All cores at once.
func BenchmarkHitParallel(b *testing.B) {
	for _, tokens := range []int{1, 100} {
		b.Run(fmt.Sprintf("tokens=%d", tokens), func(b *testing.B) {
			h := instantHandler(b, plainDirective)
			fill(b, h, tokens, "ann")
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				prepared := make([]*preparedRequest, tokens)
				for i := range prepared {
					prepared[i] = prepare(documentPath(i), "ann")
				}
				for i := 0; pb.Next(); i++ {
					p := prepared[i%tokens]
					if err := h.ServeHTTP(p.w, p.r, nothing); err != nil {
						b.Error(err)
						return
					}
					p.again()
				}
			})
		})
	}
}

// A token that is due: the request uses it and starts the renewal, which then
// runs beside the measurement.
func BenchmarkRenewing(b *testing.B) {
	h := instantHandler(b, plainDirective)
	fill(b, h, 1, "")
	key := h.pool.keys.cacheKey(string(h.claimsFor("doc-0").AppendKey(nil)))
	p := prepare(documentPath(0), "ann")
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if t := h.pool.cache.get(key); t != nil {
			t.life = 1000 * time.Hour // so that an hour is less than half of it
		}
		if err := h.ServeHTTP(p.w, p.r, nothing); err != nil {
			b.Fatal(err)
		}
		p.again()
	}
}

// A new document each time, with an API that answers at once.
func BenchmarkMiss(b *testing.B) {
	h := instantHandler(b, plainDirective)
	b.ReportAllocs()
	for i := range b.N {
		w, r := caddyRequest("/documents/cold-"+strconv.Itoa(i), "") // a tenth of it all
		if err := h.ServeHTTP(w, r, nothing); err != nil {
			b.Fatal(err)
		}
	}
}

// A cache of a million tokens: what each takes beyond its own bytes, and how
// long requests take while the garbage collector and the search for expired
// ones go through it all.
func BenchmarkMillionTokens(b *testing.B) {
	const tokens = 1_000_000
	for b.Loop() {
		heap := func() float64 {
			runtime.GC()
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			return float64(stats.HeapAlloc)
		}
		before := heap()
		h := instantHandler(b, plainDirective)
		fill(b, h, tokens, "")
		cached, _ := h.pool.cache.size()
		if cached != tokens {
			b.Fatalf("%d tokens are cached", cached)
		}
		var jwts int
		h.pool.cache.main.IterValues(func(t *token) bool { jwts += len(t.jwt()); return false })
		b.ReportMetric((heap()-before-float64(jwts))/tokens, "B/token-beyond-jwt")

		prepared := make([]*preparedRequest, 10_000)
		for i := range prepared {
			prepared[i] = prepare(documentPath(i*97), "ann")
		}
		collected := make(chan struct{})
		go func() {
			defer close(collected)
			for range 3 {
				runtime.GC()
				h.pool.cache.drop(func(t *token) bool { return t.exp == 0 }, clock.Now()) // what the sweep does
			}
		}()
		took := make([]time.Duration, 0, 1_000_000)
		for collecting := true; collecting || len(took) < 100_000; {
			select {
			case <-collected:
				collecting = false
			default:
			}
			p := prepared[len(took)%len(prepared)]
			start := time.Now()
			if err := h.ServeHTTP(p.w, p.r, nothing); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
			p.again()
		}
		slices.Sort(took)
		for _, share := range []float64{0.5, 0.99, 0.999} {
			b.ReportMetric(float64(took[int(share*float64(len(took)))].Nanoseconds())/1000, fmt.Sprintf("µs-p%g", 100*share))
		}
	}
}

// claimsFor is what a request for the document would ask for.
func (h *Handler) claimsFor(document string) *claims.Claims {
	a := new(claims.Claims)
	h.routes[0].template.Resolve(a, caddy.NewReplacer(), document)
	return a
}

// BenchmarkOverload asks for new documents faster than mint_rate lets through:
// how much of the rate is minted, how long those who get a token wait, and what
// the others get. Each round takes eight seconds.
func BenchmarkOverload(b *testing.B) {
	const rate, during = 20, 8 * time.Second
	for _, times := range []float64{1.3, 5, 50} {
		b.Run(fmt.Sprintf("%gx", times), func(b *testing.B) {
			var minted, limited, other atomic.Int64
			var waited atomic.Int64
			for range b.N {
				settings := poolSettings{endpoint: b.Name(), apiKey: defaultAPIKey, timeout: time.Second, rate: rate, burst: rate, cacheSize: minCacheSize}
				member := newMember(&dwstest.API{Delay: 150 * time.Millisecond}, nil, zap.NewNop(), dwstest.Key)
				p, err := joinPool(settings, newEndpoint(), member, clock.Now)
				if err != nil {
					b.Fatal(err)
				}
				p.useBurst(b.Context()) // which is not what is measured
				var wg sync.WaitGroup
				ticker := time.NewTicker(time.Duration(float64(time.Second) / (rate * times)))
				start := time.Now()
				for i := 0; time.Since(start) < during; i++ {
					wg.Go(func() {
						asked := time.Now()
						switch _, _, f := p.get(b.Context(), testClaims(fmt.Sprint("doc", i))); {
						case f == nil:
							minted.Add(1)
							waited.Add(int64(time.Since(asked)))
						case f.reason == reasonRateLimited:
							limited.Add(1)
						default:
							other.Add(1)
						}
					})
					<-ticker.C
				}
				ticker.Stop()
				wg.Wait()
				if err := p.leave(member); err != nil {
					b.Fatal(err)
				}
			}
			seconds := during.Seconds() * float64(b.N)
			b.ReportMetric(float64(minted.Load())/seconds, "tokens/s")
			b.ReportMetric(float64(limited.Load())/seconds, "503s/s")
			b.ReportMetric(float64(other.Load())/seconds, "others/s")
			b.ReportMetric(float64(waited.Load())/float64(max(1, minted.Load()))/1e6, "ms/token")
			b.ReportMetric(0, "ns/op")
		})
	}
}
