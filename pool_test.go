package viewersession

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

func TestOneMintHoweverManyAskAtOnce(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Delay = 300 * time.Millisecond
		var minted, shared atomic.Int32
		jwts := make([]string, 200)
		var wg sync.WaitGroup
		for i := range jwts {
			wg.Go(func() {
				tok, result, f := p.get(t.Context(), testClaims("cold"))
				if f != nil {
					t.Error(f)
					return
				}
				jwts[i] = tok.jwt()
				switch result {
				case resultMinted:
					minted.Add(1)
				case resultShared:
					shared.Add(1)
				default:
					t.Errorf("result %s", result)
				}
			})
		}
		wg.Wait()
		p.wantMints(1)
		if minted.Load() != 1 || shared.Load() != 199 {
			t.Errorf("%d minted and %d shared, want 1 and 199", minted.Load(), shared.Load())
		}
		for i, jwt := range jwts {
			if jwt != jwts[0] {
				t.Fatalf("request %d got another token", i)
			}
		}
		p.want("cold", resultHit)
		p.want("other", resultMinted)
		p.wantMints(2)
	})
}

func TestLeaderThatHangsUpHarmsNobody(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Delay = time.Second
		ctx, hangUp := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _, f := p.get(ctx, testClaims("doc"))
			if f == nil || f.reason != reasonClientGone || f.reason.status() != 499 {
				t.Errorf("the leader got %v, want client_gone", f)
			}
		})
		synctest.Wait()
		for range 50 {
			wg.Go(func() {
				if _, result, f := p.get(t.Context(), testClaims("doc")); f != nil || result != resultShared {
					t.Errorf("a follower got %v, %v", result, f)
				}
			})
		}
		synctest.Wait()
		hangUp()
		wg.Wait()
		p.wantMints(1)
	})
}

func TestTokenThroughItsLife(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		// ttl 1h, min_remaining 15m: renewal from 37.5m of remaining life on,
		// a tenth either way: after 18.75m to 26.25m.
		time.Sleep(18 * time.Minute)
		p.want("doc", resultHit)
		p.wantMints(1)
		time.Sleep(9 * time.Minute)
		if tok := p.want("doc", resultRenewing); tok != first {
			t.Error("a request waited for the renewal of a token that is good")
		}
		p.wantMints(2)
		if tok := p.want("doc", resultHit); tok == first {
			t.Error("the renewed token is not used")
		}
		// Nobody asks for the renewal; then less than min_remaining is left.
		time.Sleep(46 * time.Minute)
		if tok := p.want("doc", resultMinted); time.Until(time.Unix(tok.exp, 0)) < 59*time.Minute {
			t.Error("a token with less than min_remaining was handed out although one could be minted")
		}
		p.wantMints(3)
	})
}

func TestStaleTokenWhenTheMintFails(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		time.Sleep(50 * time.Minute)
		p.api.Set(dwstest.Unreachable)
		if tok := p.want("doc", resultStale); tok != first {
			t.Error("not the cached token")
		}
	})
}

func TestColdDocumentFails(t *testing.T) {
	for name, tc := range map[string]struct {
		answer dwstest.Answer
		reason reason
		status int
		after  time.Duration
	}{
		"refused":   {dwstest.Unreachable, reasonUnavailable, 502, 0},
		"hangs":     {dwstest.Hanging, reasonTimeout, 504, defaultTimeout},
		"500":       {dwstest.Failing(500), reasonUnavailable, 502, 0},
		"503":       {dwstest.Failing(503), reasonUnavailable, 502, 0},
		"503 later": {dwstest.Failing(503, "Retry-After", "7"), reasonThrottled, 503, 0},
		"429":       {dwstest.Failing(429), reasonThrottled, 503, 0},
		"401":       {dwstest.Failing(401), reasonKeyRefused, 502, 0},
		"403":       {dwstest.Failing(403), reasonKeyRefused, 502, 0},
		"400":       {dwstest.Failing(400), reasonRefused, 502, 0},
		"422":       {dwstest.Failing(422), reasonRefused, 502, 0},
		"404":       {dwstest.Failing(404), reasonRefused, 502, 0},
		"307":       {dwstest.Failing(307, "Location", "https://elsewhere.example.com/"), reasonUnavailable, 502, 0},
	} {
		t.Run(name, func(t *testing.T) {
			withPool(t, nil, func(t *testing.T, p *poolTest) {
				p.api.Set(tc.answer)
				start := time.Now()
				f := p.wantFailure("doc", tc.reason)
				if f.reason.status() != tc.status {
					t.Errorf("status %d, want %d", f.reason.status(), tc.status)
				}
				if got := time.Since(start); got != tc.after {
					t.Errorf("it took %s, want %s", got, tc.after)
				}
				if f.reason.status() == 503 && clock.Now().Until(f.retryAt) <= 0 {
					t.Error("503 without a time to retry at")
				}
				p.api.Set(nil)
				time.Sleep(11 * time.Second)
				p.want("doc", resultMinted)
			})
		})
	}
}

func TestOnlyWhatWasNotSentIsRetried(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(dwstest.Unreachable)
		p.wantFailure("unsent", reasonUnavailable)
		p.wantMints(2)
		p.api.Set(func(dwstest.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF })
		p.wantFailure("sent", reasonUnavailable)
		p.wantMints(3)
	})
}

func TestRenewalIsTriedOnceASecond(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("doc", resultMinted)
		time.Sleep(30 * time.Minute)
		p.api.Set(dwstest.Failing(404))
		for range 100 {
			p.want("doc", resultRenewing)
			time.Sleep(10 * time.Millisecond)
		}
		p.wantMints(2)
	})
}

func TestShortGrantDoesNotMintEveryTime(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		// One minute where an hour was asked for: min_remaining is 15 s then.
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			return dwstest.Grant(dwstest.Token(int(r.Exp), time.Now().Unix()+60))
		})
		for range 600 {
			tok, _, f := p.get(t.Context(), testClaims("doc"))
			if f != nil {
				t.Fatal(f)
			}
			if left := time.Until(time.Unix(tok.exp, 0)); left < 15*time.Second {
				t.Fatalf("a token with %s left", left)
			}
			time.Sleep(time.Second)
		}
		// Renewed after 18.75 s to 26.25 s, so 23 to 33 times in ten minutes.
		if got := p.api.Count(); got < 20 || got > 35 {
			t.Errorf("%d mints in ten minutes", got)
		}
	})
}

func TestPanicInTheTransportIsAFailure(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(func(dwstest.Request) (*http.Response, error) { panic("boom") })
		for i := range 100 {
			p.wantFailure(fmt.Sprint("doc", i), reasonUnavailable)
			time.Sleep(time.Second)
		}
		if since, last := p.stats.minting.status(); since == nil || last == nil {
			t.Error("the admin API says that all is well")
		}
		p.api.Set(nil)
		time.Sleep(maxDelay)
		p.want("doc", resultMinted)
	})
}

// A token that was published between a request's look-up and its flight is
// used, and not minted again.
func TestFlightLooksAgain(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		published := p.want("doc", resultMinted)
		landed, _, f := p.mintOnce(p.flight(published), testClaims("doc"), flightOptions{})
		if f != nil || landed != published {
			t.Errorf("got %v, %v", landed, f)
		}
		p.wantMints(1)
	})
}

// An outage long ago says nothing: whoever would get a token that runs short
// waits for another.
func TestBadNewsGrowOld(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("doc", resultMinted)
		time.Sleep(40 * time.Minute)
		p.api.Set(dwstest.Failing(500))
		p.want("doc", resultRenewing)
		p.api.Set(nil)
		time.Sleep(10 * time.Minute)
		p.want("doc", resultMinted)
	})
}

// A mint must see nothing of the request that led to it: Caddy's transport
// takes dial addresses from the request's variables, and would carry the key
// to wherever forward_auth went before.
func TestMintInheritsNothingFromTheRequest(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		type own struct{}
		ctx := context.WithValue(t.Context(), own{}, "whatever another handler left")
		ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{"reverse_proxy.dial_info": reverseproxy.DialInfo{}})
		ctx = context.WithValue(ctx, caddyhttp.OriginalRequestCtxKey, http.Request{})
		requestReplacer := caddy.NewReplacer()
		ctx = context.WithValue(ctx, caddy.ReplacerCtxKey, requestReplacer)
		if _, _, f := p.get(ctx, testClaims("doc")); f != nil {
			t.Fatal(f)
		}
		got := p.api.Asked[0].Context
		for _, key := range []any{own{}, caddyhttp.VarsCtxKey, caddyhttp.OriginalRequestCtxKey} {
			if value := got.Value(key); value != nil {
				t.Errorf("the mint's context holds %v of the request", key)
			}
		}
		if repl, ok := got.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); !ok || repl == requestReplacer {
			t.Error("the mint's context needs a replacer of its own")
		}
		if deadline, ok := got.Deadline(); !ok || time.Until(deadline) > defaultTimeout {
			t.Error("the mint has no deadline")
		}
	})
}
