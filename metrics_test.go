package viewersession

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// gather returns the metrics of an endpoint, by name and labels. Any order of
// handlers and reloads registers them once for each registry.
func gather(t *testing.T, endpoint string) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	for range 2 {
		if err := registerMetrics(registry); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name, mine := strings.TrimPrefix(family.GetName(), "caddy_viewer_session_"), false
			for _, label := range metric.GetLabel() {
				if label.GetName() == "endpoint" {
					mine = label.GetValue() == endpoint
					continue
				}
				name += " " + label.GetValue()
			}
			if !mine {
				continue
			}
			switch family.GetType() {
			case dto.MetricType_COUNTER:
				values[name] = metric.GetCounter().GetValue()
			case dto.MetricType_HISTOGRAM:
				values[name] = float64(metric.GetHistogram().GetSampleCount())
			default:
				values[name] = metric.GetGauge().GetValue()
			}
		}
	}
	return values
}

// changed returns what has changed, sorted.
func changed(before, after map[string]float64) string {
	differences := make(map[string]float64)
	for name, value := range after {
		if d := value - before[name]; d != 0 {
			differences[name] = d
		}
	}
	return strings.TrimSuffix(strings.TrimPrefix(fmt.Sprint(differences), "map["), "]")
}

func TestMetricsAreWellFormed(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		registry := prometheus.NewPedanticRegistry()
		if err := registerMetrics(registry); err != nil {
			t.Fatal(err)
		}
		problems, err := testutil.GatherAndLint(registry)
		if err != nil || len(problems) > 0 {
			t.Errorf("%v, %v", err, problems)
		}
		// Exactly those of the contract.
		want := []string{
			"requests_total", "mints_total", "mint_duration_seconds", "mints_in_flight", "last_mint_timestamp_seconds",
			"backoff_until_timestamp_seconds", "rate_limited_total", "cached_tokens", "cached_bytes", "cache_rejected_total", "store_operations_total",
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]bool)
		for _, family := range families {
			got[family.GetName()] = true
		}
		for _, name := range want {
			if !got["caddy_viewer_session_"+name] {
				t.Errorf("%s is missing", name)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d metrics, want %d: %v", len(got), len(want), got)
		}
		// All values of labels are there from the start, so that rates are right.
		values := gather(t, p.endpoint.Host)
		for r := range strings.FieldsSeq("hit renewing minted shared stale bypass error") {
			if _, ok := values["requests_total "+r]; !ok {
				t.Errorf("no requests_total for %s", r)
			}
		}
		for _, o := range outcomes {
			if _, ok := values["mints_total "+o]; !ok {
				t.Errorf("no mints_total for %s", o)
			}
		}
		for _, o := range storeOperations {
			if _, ok := values["store_operations_total "+o.operation+" "+o.outcome]; !ok {
				t.Errorf("no store_operations_total for %v", o)
			}
		}
	})
}

// Each result of a request and each outcome of a mint is counted once.
func TestWhatIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := new(dwstest.API)
		h := newTestHandler(t, api, `viewer_session {
			document_path /documents/:id {
				session_path /documents/:id/session
			}
			document_path /users/:id {
				user_id {http.auth.user.id}
			}
		}`)
		serve := func(method, target string) func() {
			return func() {
				r, w := newRequest(method, target)
				_ = h.ServeHTTP(w, r, new(app))
				synctest.Wait()
			}
		}
		answer := func(answer dwstest.Answer, document string) func() {
			return func() {
				api.Set(answer)
				serve("GET", "/documents/"+document)()
				api.Set(nil)
				time.Sleep(5 * time.Minute)
				serve("GET", "/elsewhere")()
			}
		}
		for _, step := range []struct {
			name string
			do   func()
			want string
		}{
			{"minted", serve("GET", "/documents/a"), "cached_bytes:B cached_tokens:1 last_mint_timestamp_seconds:T mint_duration_seconds:1 mints_total ok:1 requests_total minted:1"},
			{"hit", serve("GET", "/documents/a"), "requests_total hit:1"},
			{"no viewer route", serve("GET", "/elsewhere"), ""},
			{"no canonical path", serve("GET", "/documents/a%2Fb"), ""},
			{"bypass", serve("OPTIONS", "/documents/a"), "requests_total bypass:1"},
			{"a session that the app refuses", serve("GET", "/documents/a/session"), "requests_total bypass:1"},
			{"a session by another method", serve("POST", "/documents/a/session"), "requests_total bypass:1"},
			{"a session", func() {
				r, w := newRequest("GET", "/documents/a/session")
				_ = h.ServeHTTP(w, r, appAnswering(204))
			}, "requests_total hit:1"},
			{"a session for another site", func() {
				r, w := newRequest("GET", "/documents/a/session", "Sec-Fetch-Site", "cross-site")
				_ = h.ServeHTTP(w, r, appAnswering(204))
			}, "requests_total error:1"},
			{"no user", serve("GET", "/users/a"), "requests_total error:1"},
			{"key refused", answer(dwstest.Failing(403), "b"), "mint_duration_seconds:1 mints_total key_refused:1 requests_total error:1"},
			{"rejected", answer(dwstest.Failing(404), "c"), "mint_duration_seconds:1 mints_total rejected:1 requests_total error:1"},
			{"not found", answer(dwstest.Failing(404), "d"), "mint_duration_seconds:1 mints_total rejected:1 requests_total error:1"},
			{"throttled", answer(dwstest.Failing(429), "e"), "mint_duration_seconds:1 mints_total throttled:1 requests_total error:1"},
			{"unavailable", answer(dwstest.Failing(500), "f"), "mint_duration_seconds:1 mints_total unavailable:1 requests_total error:1"},
			{"timeout", answer(dwstest.Hanging, "g"), "mint_duration_seconds:1 mints_total timeout:1 requests_total error:1"},
			{"invalid reply", answer(func(dwstest.Request) (*http.Response, error) {
				return dwstest.Respond(201, `{}`)
			}, "h"), "mint_duration_seconds:1 mints_total invalid_reply:1 requests_total error:1"},
			{"refused and sent again", answer(dwstest.Unreachable, "i"), "mint_duration_seconds:2 mints_total unavailable:2 requests_total error:1"},
		} {
			before := gather(t, h.pool.endpoint.Host)
			step.do()
			after := gather(t, h.pool.endpoint.Host)
			got := changed(before, after)
			for word := range strings.FieldsSeq(got) {
				if value, ok := strings.CutPrefix(word, "cached_bytes:"); ok {
					got = strings.Replace(got, word, "cached_bytes:B", 1)
					if value == "0" {
						t.Error("no bytes")
					}
				}
				if strings.HasPrefix(word, "last_mint_timestamp_seconds:") {
					got = strings.Replace(got, word, "last_mint_timestamp_seconds:T", 1)
				}
			}
			if got != step.want {
				t.Errorf("%s: changed %s, want %s", step.name, got, step.want)
			}
		}
	})
}

func TestGaugesOfMinting(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst = 1, 3 }, func(t *testing.T, p *poolTest) {
		before := gather(t, p.endpoint.Host)
		p.api.Delay = time.Second
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() { p.asked(fmt.Sprint("doc", i), resultMinted) })
		}
		synctest.Wait()
		if got := gather(t, p.endpoint.Host)["mints_in_flight"]; got != 3 {
			t.Errorf("%v mints in flight, want 3", got)
		}
		wg.Wait()
		after := gather(t, p.endpoint.Host)
		if after["mints_in_flight"] != 0 {
			t.Errorf("%v mints in flight in the end", after["mints_in_flight"])
		}
		if got := after["last_mint_timestamp_seconds"]; got != float64(time.Now().Unix()) {
			t.Errorf("the last mint was at %v, want %d", got, time.Now().Unix())
		}
		if got := after["cached_tokens"] - before["cached_tokens"]; got != 3 {
			t.Errorf("%v tokens, want 3", got)
		}
		// Over mint_rate.
		p.api.Delay = 0
		for i := range 20 {
			wg.Go(func() { _, _, _ = p.get(t.Context(), testClaims(fmt.Sprint("more", i))) })
		}
		wg.Wait()
		if got := gather(t, p.endpoint.Host)["rate_limited_total"] - before["rate_limited_total"]; got < 10 {
			t.Errorf("%v rate limited", got)
		}
		p.purge("")
		if got := gather(t, p.endpoint.Host); got["cached_tokens"] != before["cached_tokens"] || got["cached_bytes"] != before["cached_bytes"] {
			t.Errorf("%v tokens and %v bytes after a purge", got["cached_tokens"], got["cached_bytes"])
		}
	})
}

func TestGaugeOfBackoff(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		until := func() float64 { return gather(t, p.endpoint.Host)["backoff_until_timestamp_seconds"] }
		p.want("doc", resultMinted)
		if until() != 0 {
			t.Error("in back-off, although all is well")
		}
		p.api.Set(dwstest.Failing(429, "Retry-After", "20"))
		p.wantFailure("other", reasonThrottled)
		if got, want := until(), float64(time.Now().Add(20*time.Second).Unix()); got != want {
			t.Errorf("until %v, want %v", got, want)
		}
		time.Sleep(21 * time.Second)
		if until() != 0 {
			t.Error("the time is over")
		}
		p.api.Set(dwstest.Unreachable)
		for i := range 3 {
			p.wantFailure(fmt.Sprint("new", i), reasonUnavailable)
		}
		if got := until(); got <= float64(time.Now().Unix()) {
			t.Errorf("until %v with the API down", got)
		}
	})
}

func TestCacheCountsItsTokens(t *testing.T) {
	c := newTestCache(t, minCacheSize)
	now := time.Now()
	check := func(when string) {
		t.Helper()
		c.main.Wait()
		stored := 0
		c.main.IterValues(func(*token) bool { stored++; return false })
		if got := c.count.Load(); got != int64(stored) {
			t.Errorf("%s: %d tokens are counted, and %d there", when, got, stored)
		}
	}
	for i := range 3000 { // more than fit
		c.put(cachedToken(longKey("key", i)), clock.At(now))
	}
	check("full")
	for i := range 500 { // again
		c.put(cachedToken(longKey("key", i)), clock.At(now))
	}
	check("stored again")
	tokens, bytes := c.size()
	if tokens < 100 || bytes > minCacheSize || bytes < tokens*900 {
		t.Errorf("%d tokens in %d bytes", tokens, bytes)
	}
	c.main.UpdateMaxCost(1) // from now on ristretto rejects every new key
	before := c.turnedAway.Load()
	for i := range 100 {
		c.put(cachedToken(longKey("new", i)), clock.At(now))
	}
	check("turned away")
	if got := c.turnedAway.Load() - before; got != 100 {
		t.Errorf("%d are counted as turned away, want 100", got)
	}
	c.main.UpdateMaxCost(minCacheSize)
	c.purge("", clock.At(now))
	check("purged")
	c.close()
	if tokens, _ := c.size(); tokens != int64(len(c.overflow.tokens)) {
		t.Errorf("%d tokens after the cache was closed", tokens)
	}
}

func TestMetricsNameNoDocument(t *testing.T) {
	h := newTestHandler(t, new(dwstest.API), oneRoute)
	r, w := newRequest("GET", "/documents/secret-document-name")
	if err := h.ServeHTTP(w, r, new(app)); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	if err := registerMetrics(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		text := family.String()
		if strings.Contains(text, "secret-document-name") || strings.Contains(text, dwstest.Key) || strings.Contains(text, "eyJ") {
			t.Errorf("%s tells too much: %s", family.GetName(), text)
		}
	}
}

// longKey is long enough to be one of a token.
func longKey(name string, i int) string {
	return string(append(make([]byte, len(mint.KeyID{})), testClaims(fmt.Sprint(name, i)).AppendKey(nil)...))
}
