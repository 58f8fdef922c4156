package viewersession

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/emulator"
	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
	"github.com/viewersession/caddy-viewer-session/internal/relaytest"
)

// TestOverloadAndTrouble asks for five times mint_rate while connections to the
// API silently die, the clock is set, and configs are reloaded: tokens go on
// being minted at the rate, each for whom it was asked, and nothing piles up.
// VIEWER_SESSION_SOAK says for how long, and then holds it to the rate.
func TestOverloadAndTrouble(t *testing.T) {
	during, trouble, long := 6*time.Second, 2*time.Second, false
	if text := os.Getenv("VIEWER_SESSION_SOAK"); text != "" {
		var err error
		if during, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
		trouble, long = 20*time.Second, true
	}
	const rate = 50
	api := emulator.New(emulator.Options{AllowRemote: true})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-time.After(50 * time.Millisecond) // the API's work
		api.ServeHTTP(w, r)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	defer api.Close()
	relay := relaytest.New(t, server.Listener.Addr().String())

	h := PoolOptions{InsecureEndpoint: true, TransportRaw: json.RawMessage(`{"protocol":"http","tls":{"insecure_skip_verify":true}}`)}
	config, err := h.transportJSON("https")
	if err != nil {
		t.Fatal(err)
	}
	settings := poolSettings{
		endpoint: "https://" + relay.Address + "/viewer/sessions", apiKey: defaultAPIKey, timeout: 4 * time.Second,
		rate: rate, burst: rate, cacheSize: minCacheSize,
	}
	endpoint, err := url.Parse(settings.endpoint)
	if err != nil {
		t.Fatal(err)
	}
	var ahead atomic.Int64
	now := func() clock.Time {
		now := time.Now()
		return clock.Of(now.Add(time.Duration(ahead.Load())), clock.At(now).Mono())
	}
	var p *pool
	load := func() (end func()) {
		ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
		mod, err := ctx.LoadModuleByID(transportModule, json.RawMessage(config))
		if err != nil {
			t.Fatal(err)
		}
		member := newMember(mint.NewTransport(mod.(http.RoundTripper), settings.timeout), nil, zap.NewNop(), dwstest.Key)
		joined, err := joinPool(settings, endpoint, member, now)
		if err != nil {
			t.Fatal(err)
		}
		if p == nil {
			p = joined
		}
		return func() {
			if err := joined.leave(member); err != nil {
				t.Error(err)
			}
			cancel()
		}
	}
	end := load()
	p.useBurst(t.Context()) // which is not what is measured

	var minted, cached, limited, other atomic.Int64
	var wrong sync.Map
	ask := func(document, user string) {
		a := testClaims(document)
		a.UserID = user
		tok, result, f := p.get(from(context.Background(), fmt.Sprint("192.0.2.", rand.IntN(20))), a)
		switch {
		case f == nil && (!strings.Contains(payloadOf(tok.jwt()), `"document_id":"`+document+`"`) || !strings.Contains(payloadOf(tok.jwt()), `"user_id":"`+user+`"`)):
			wrong.Store(document, user)
		case f == nil && time.Now().Unix() >= tok.exp:
			wrong.Store(document, "expired")
		case f == nil && result == resultMinted:
			minted.Add(1)
		case f == nil:
			cached.Add(1)
		case f.reason == reasonRateLimited:
			limited.Add(1)
		default:
			other.Add(1)
			t.Log(f)
		}
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	goroutines, connections, firstHeap := 0, 0, uint64(0)
	var wg sync.WaitGroup
	ticker := time.NewTicker(time.Second / (5 * rate))
	defer ticker.Stop()
	start := time.Now()
	troubleAt, sampleAt := start.Add(trouble), start.Add(during/4)
	steps := []time.Duration{10 * time.Minute, -10 * time.Minute, -2 * time.Hour, 2 * time.Hour, 50 * time.Second, -50 * time.Second}
	for i := 0; time.Since(start) < during; i++ {
		wg.Go(func() { ask(fmt.Sprint("made-up-", i), fmt.Sprint("user-", i%7)) })
		if i%10 == 0 { // somebody who has a document open
			wg.Go(func() { ask(fmt.Sprint("open-", i%30), "ann") })
		}
		if now := time.Now(); now.After(troubleAt) {
			troubleAt = now.Add(trouble)
			relay.Silence()
			ahead.Add(int64(steps[i%len(steps)]))
			next := load()
			end()
			end = next
		} else if now.After(sampleAt) && firstHeap == 0 {
			goroutines, connections, firstHeap = runtime.NumGoroutine(), relay.Open(), heap()
		}
		<-ticker.C
	}
	lastGoroutines, lastConnections, lastHeap := runtime.NumGoroutine(), relay.Open(), heap()
	wg.Wait()
	took := time.Since(start)
	end()

	t.Logf("in %s: %d minted (%.1f a second of %d), %d cached, %d refused with 503, %d others; goroutines %d, then %d; connections %d, then %d; heap %d KiB, then %d KiB",
		took.Round(time.Second), minted.Load(), float64(minted.Load())/took.Seconds(), rate, cached.Load(), limited.Load(), other.Load(),
		goroutines, lastGoroutines, connections, lastConnections, firstHeap>>10, lastHeap>>10)
	wrong.Range(func(document, user any) bool {
		t.Errorf("a wrong token for %s (%s)", document, user)
		return true
	})
	least := 0.5
	if long {
		least = 0.95
	}
	if float64(minted.Load()) < least*rate*took.Seconds() {
		t.Errorf("%d minted in %s, want %.0f", minted.Load(), took, least*rate*took.Seconds())
	}
	if lastGoroutines > 3*goroutines || lastConnections > connections+20 || lastHeap > 2*firstHeap+(16<<20) {
		t.Error("something piles up")
	}
}

// payloadOf is what a token says.
func payloadOf(jwt string) string {
	payload, _ := base64.RawURLEncoding.DecodeString(strings.Split(jwt, ".")[1])
	return string(payload)
}
