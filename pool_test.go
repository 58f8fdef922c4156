package viewersession

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

var endpoints atomic.Int64

// newEndpoint is an endpoint of the test's own, so that its metrics are as well.
func newEndpoint() *url.URL {
	return &url.URL{Scheme: "https", Host: fmt.Sprintf("api%d.example.com", endpoints.Add(1)), Path: "/viewer/sessions"}
}

var testEndpoint = &url.URL{Scheme: "https", Host: "api.example.com", Path: "/viewer/sessions"}

// poolTest is a pool with one member, in a bubble with a fake clock.
type poolTest struct {
	*pool
	t      *testing.T
	api    *dwstest.API
	member *member
}

func testSettings(t *testing.T) poolSettings {
	return poolSettings{
		endpoint: testEndpoint.String() + "?" + t.Name(), apiKey: defaultAPIKey, timeout: defaultTimeout,
		rate: defaultMintRate, burst: defaultMintBurst, cacheSize: minCacheSize,
	}
}

func withPool(t *testing.T, change func(*poolSettings), test func(*testing.T, *poolTest)) {
	t.Helper()
	withPoolAt(t, clock.Now, change, test)
}

// withPoolAt is withPool for a gateway with clocks of its own.
func withPoolAt(t *testing.T, now func() clock.Time, change func(*poolSettings), test func(*testing.T, *poolTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		settings := testSettings(t)
		if change != nil {
			change(&settings)
		}
		api := new(dwstest.API)
		member := newMember(api, nil, zap.NewNop(), "pdf_live_test")
		p, err := joinPool(settings, newEndpoint(), member, now)
		if err != nil {
			t.Fatal(err)
		}
		pt := &poolTest{pool: p, t: t, api: api, member: member}
		defer func() {
			if err := p.leave(pt.member); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}()
		test(t, pt)
	})
}

func testClaims(document string) *claims.Claims {
	return &claims.Claims{Request: dws.Request{DocumentID: document, Permissions: []string{"read"}, TTL: time.Hour}, MinRemaining: 15 * time.Minute}
}

// asked gets a token for document and checks where it came from. It may run in
// a goroutine of its own.
func (p *poolTest) asked(document string, want result) *token {
	p.t.Helper()
	tok, got, f := p.get(p.t.Context(), testClaims(document))
	if f != nil {
		p.t.Errorf("%s: no token: %v", document, f)
	} else if got != want {
		p.t.Errorf("%s: result %s, want %s", document, got, want)
	}
	return tok
}

// want is asked, ends the test if it is otherwise, and waits for renewals.
func (p *poolTest) want(document string, want result) *token {
	p.t.Helper()
	tok := p.asked(document, want)
	if p.t.Failed() {
		p.t.FailNow()
	}
	synctest.Wait()
	return tok
}

// wantFailure gets none, for this reason.
func (p *poolTest) wantFailure(document string, want reason) *failure {
	p.t.Helper()
	tok, _, f := p.get(p.t.Context(), testClaims(document))
	if f == nil {
		p.t.Fatalf("%s: a token that expires at %d, want failure %s", document, tok.exp, want)
	}
	if f.reason != want {
		p.t.Fatalf("%s: failure %s (%v), want %s", document, f.reason, f, want)
	}
	synctest.Wait()
	return f
}

func (p *poolTest) wantMints(want int) {
	p.t.Helper()
	if got := p.api.Count(); got != want {
		p.t.Fatalf("%d mints, want %d", got, want)
	}
}

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

func TestValidTokenOutlivesAnOutage(t *testing.T) {
	for name, outage := range map[string]dwstest.Answer{
		"refused": dwstest.Unreachable, "5xx": dwstest.Failing(500), "hangs": dwstest.Hanging, "key refused": dwstest.Failing(403), "rejected": dwstest.Failing(404),
		"throttled": dwstest.Failing(429, "Retry-After", "60"), "rubbish": func(dwstest.Request) (*http.Response, error) {
			return dwstest.Respond(200, "<html>")
		},
	} {
		t.Run(name, func(t *testing.T) {
			withPool(t, nil, func(t *testing.T, p *poolTest) {
				first := p.want("doc", resultMinted)
				p.api.Set(outage)
				waited := 0
				for range 59 {
					time.Sleep(time.Minute)
					start := time.Now()
					tok, _, f := p.get(t.Context(), testClaims("doc"))
					if f != nil || tok != first {
						t.Fatalf("after %s: %v", time.Since(start), f)
					}
					if time.Since(start) > 0 {
						waited++
					}
				}
				if waited > 0 {
					t.Errorf("%d requests with a valid token waited for the API", waited)
				}
				time.Sleep(time.Minute) // exp is now
				if tok, _, f := p.get(t.Context(), testClaims("doc")); f == nil {
					t.Fatalf("a token that expired %s ago was handed out", time.Since(time.Unix(tok.exp, 0)))
				}
				p.api.Set(nil)
				time.Sleep(time.Minute)
				p.want("doc", resultMinted)
				p.want("doc", resultHit)
			})
		})
	}
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

func TestOneBadDocumentHoldsUpNobody(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Document == "bad" {
				return dwstest.Failing(500)(r)
			}
			return dwstest.Grant(dwstest.Token(1, r.Exp))
		})
		for i := range 100 {
			p.wantFailure("bad", reasonUnavailable)
			p.want(fmt.Sprintf("good%d", i), resultMinted)
			time.Sleep(2 * time.Second)
		}
		// Not even where nobody else was there in between.
		for range 100 {
			p.wantFailure("bad", reasonUnavailable)
			time.Sleep(2 * time.Second)
		}
		p.want("last", resultMinted)
	})
}

func TestBadProbeDoesNotStandForAll(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(dwstest.Unreachable)
		for i := range 10 {
			p.wantFailure(fmt.Sprint("down", i), reasonUnavailable)
		}
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Document == "bad" {
				return dwstest.Failing(500)(r)
			}
			return dwstest.Grant(dwstest.Token(1, r.Exp))
		})
		// The bad document always asks first.
		deadline := time.Now().Add(time.Minute)
		for time.Now().Before(deadline) {
			p.wantFailure("bad", reasonUnavailable)
			if _, _, f := p.get(t.Context(), testClaims("good")); f == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Error("within a minute, no other document got through")
	})
}

func TestBackoffBoundsCallsAndEndsByItself(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(dwstest.Failing(500))
		const requests = 6000
		for i := range requests {
			p.wantFailure(fmt.Sprint("doc", i), reasonUnavailable)
			time.Sleep(100 * time.Millisecond)
		}
		// Ten minutes, with a delay of at most 10 s and at least half of it.
		if got := p.api.Count(); got < 600/10 || got > 600/5+20 {
			t.Errorf("%d mints were tried in ten minutes of outage", got)
		}
		p.api.Set(nil)
		start := time.Now()
		for i := 0; ; i++ {
			if _, _, f := p.get(t.Context(), testClaims(fmt.Sprint("back", i))); f == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(start); took > maxDelay {
			t.Errorf("it took %s to notice that the API is back", took)
		}
		for i := range 50 {
			p.want(fmt.Sprint("all", i), resultMinted)
		}
	})
}

func TestRetryAfterIsKept(t *testing.T) {
	for name, tc := range map[string]struct {
		value     string
		held, end time.Duration
	}{
		"seconds":  {"120", 119 * time.Second, 121 * time.Second},
		"a year":   {"31536000", 299 * time.Second, 301 * time.Second},
		"huge":     {"18446744073709551615", 299 * time.Second, 301 * time.Second},
		"nonsense": {"soon", 200 * time.Millisecond, maxDelay},
		"negative": {"-5", 200 * time.Millisecond, maxDelay},
	} {
		t.Run(name, func(t *testing.T) {
			withPool(t, nil, func(t *testing.T, p *poolTest) {
				p.api.Set(dwstest.Failing(429, "Retry-After", tc.value))
				p.wantFailure("doc", reasonThrottled)
				p.api.Set(nil)
				start := time.Now()
				for time.Since(start) < tc.held {
					f := p.wantFailure("doc", reasonThrottled)
					if until := clock.Now().Until(f.retryAt); until <= 0 || until > 5*time.Minute {
						t.Fatalf("retry in %s", until)
					}
					p.wantFailure("other", reasonThrottled)
					time.Sleep(100 * time.Millisecond)
				}
				p.wantMints(1)
				time.Sleep(tc.end - tc.held)
				p.want("doc", resultMinted)
			})
		})
	}
}

func TestPermanentRefusalIsRememberedForSeconds(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(dwstest.Failing(404))
		for range 10 {
			p.wantFailure("doc", reasonRefused)
			time.Sleep(100 * time.Millisecond)
		}
		p.wantMints(1)
		time.Sleep(refusalMemory)
		p.wantFailure("doc", reasonRefused)
		p.wantMints(2)
	})
}

func TestRefusalsBySomeStrangersIDsOpenNoBackoff(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(dwstest.Failing(400))
		for i := range 100 {
			p.wantFailure(fmt.Sprint("made-up", i), reasonRefused)
		}
		p.api.Set(nil)
		p.want("real", resultMinted)
	})
}

func TestRotatedKeyNeedsNoReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		if err := os.WriteFile(file, []byte(key+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("pdf_live_test")
	accepted := new(atomic.Value)
	accepted.Store("Bearer pdf_live_test")
	withPool(t, func(s *poolSettings) { s.apiKey = "{file." + file + "}" }, func(t *testing.T, p *poolTest) {
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Key != accepted.Load() {
				return dwstest.Failing(401)(r)
			}
			return dwstest.Grant(dwstest.Token(1, r.Exp))
		})
		old := p.want("doc", resultMinted)

		// The file changes first, then the API refuses the old key: the one
		// mint that finds out is sent again with the new key.
		write("pdf_live_test2")
		accepted.Store("Bearer pdf_live_test2")
		p.want("doc", resultHit) // nobody has noticed yet
		p.want("cold", resultMinted)
		p.wantMints(3)
		if tok := p.want("doc", resultMinted); tok.key() == old.key() {
			t.Error("a token of the old key's account was used under the new key")
		}

		// The API refuses the key first. It is held back; as soon as the
		// file has changed, the next request gets through at once.
		accepted.Store("Bearer pdf_live_test3")
		for i := range 5 {
			p.wantFailure(fmt.Sprint("cold", i), reasonKeyRefused)
		}
		if !p.minter.Failing(clock.Now()) {
			t.Error("a refused key opens no back-off")
		}
		mints := p.api.Count()
		p.wantFailure("held", reasonKeyRefused)
		p.wantMints(mints)
		write("pdf_live_test3")
		p.want("held", resultMinted)
		p.want("cold0", resultMinted)
		if keys := p.api.Keys(); keys[len(keys)-1] != "Bearer pdf_live_test3" {
			t.Errorf("the last mint used the key %q", keys[len(keys)-1])
		}
	})
}

// A wrong key, in the file or in a new config, takes no valid token away: those
// of the key that minted last are used until another has proven itself.
func TestWrongNewKeyTakesNoTokenAway(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("pdf_live_test")
	withPool(t, func(s *poolSettings) { s.apiKey = "{file." + file + "}" }, func(t *testing.T, p *poolTest) {
		kept := p.want("kept", resultMinted)
		p.api.Set(dwstest.Failing(401))
		write("pdf_live_wrong")
		p.wantFailure("cold", reasonKeyRefused)
		if tok := p.want("kept", resultHit); tok != kept {
			t.Error("another token")
		}
		// By a reload.
		settings := p.settings
		next := newMember(p.api, nil, zap.NewNop(), "pdf_live_wrong2")
		if _, err := joinPool(settings, testEndpoint, next, clock.Now); err != nil {
			t.Fatal(err)
		}
		if err := p.leave(p.member); err != nil {
			t.Fatal(err)
		}
		p.member = next
		p.want("kept", resultHit)
		p.wantFailure("cold2", reasonKeyRefused)
		p.want("kept", resultHit)
		// The right one takes over with its first mint.
		p.api.Set(nil)
		write("pdf_live_right")
		time.Sleep(refusalMemory)
		p.want("cold", resultMinted)
		if tok := p.want("kept", resultMinted); tok.key() == kept.key() {
			t.Error("a token of the old key's account was used under the new key")
		}
	})
}

func TestKeyChangedByAReloadIsTriedAtOnce(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Key != "Bearer pdf_live_mended" {
				return dwstest.Failing(403)(r)
			}
			return dwstest.Grant(dwstest.Token(1, r.Exp))
		})
		for i := range 10 {
			p.wantFailure(fmt.Sprint("doc", i), reasonKeyRefused)
		}
		next := newMember(p.api, nil, zap.NewNop(), "pdf_live_mended")
		if _, err := joinPool(p.settings, testEndpoint, next, clock.Now); err != nil {
			t.Fatal(err)
		}
		if err := p.leave(p.member); err != nil {
			t.Fatal(err)
		}
		p.member = next
		p.want("doc0", resultMinted)
		p.want("new", resultMinted)
	})
}

func TestRetryAfterCountsFromTheAnswer(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Delay = 3 * time.Second
		p.api.Set(dwstest.Failing(429, "Retry-After", "3"))
		if f := p.wantFailure("doc", reasonThrottled); clock.Now().Until(f.retryAt) != 3*time.Second {
			t.Errorf("retry in %s", clock.Now().Until(f.retryAt))
		}
	})
}

func TestRenewalsThatAreHeldBackCostNoRate(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst = 1, 40 }, func(t *testing.T, p *poolTest) {
		for i := range 20 {
			p.want(fmt.Sprint("doc", i), resultMinted)
		}
		time.Sleep(30 * time.Minute)
		p.api.Set(dwstest.Failing(429, "Retry-After", "300"))
		p.wantFailure("cold", reasonThrottled)
		for i := range 20 {
			p.want(fmt.Sprint("doc", i), resultRenewing)
		}
		p.api.Set(nil)
		time.Sleep(5 * time.Minute)
		p.want("probe", resultMinted) // it is back
	})
}

func TestMintRate(t *testing.T) {
	settings := func(s *poolSettings) { s.rate, s.burst, s.timeout = 10, 5, 2*time.Second }
	t.Run("queues within the timeout, then 503", func(t *testing.T) {
		withPool(t, settings, func(t *testing.T, p *poolTest) {
			var served, limited atomic.Int32
			var latest atomic.Int64
			start := time.Now()
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() {
					_, _, f := p.get(t.Context(), testClaims(fmt.Sprint("doc", i)))
					if f == nil {
						served.Add(1)
						if took := int64(time.Since(start)); took > latest.Load() {
							latest.Store(took)
						}
						return
					}
					limited.Add(1)
					if f.reason != reasonRateLimited || f.reason.status() != 503 || clock.At(start).Until(f.retryAt) < time.Second {
						t.Errorf("%s %d retry at %s", f.reason, f.reason.status(), f.retryAt.Wall())
					}
					if took := time.Since(start); took > 0 {
						t.Errorf("a request that cannot be served waited %s for its 503", took)
					}
				})
			}
			wg.Wait()
			// 5 at once and 10 in a second, but for the one who would come in the
			// last moment: half of the timeout is the mint's.
			if got := served.Load(); got != 14 {
				t.Errorf("%d served, want 14", got)
			}
			if got := time.Duration(latest.Load()); got > time.Second {
				t.Errorf("the last was served after %s", got)
			}
			p.wantMints(14)
			time.Sleep(2 * time.Second)
			p.want("later", resultMinted)
		})
	})
	t.Run("renewals count and give way", func(t *testing.T) {
		withPool(t, settings, func(t *testing.T, p *poolTest) {
			p.want("doc", resultMinted)
			time.Sleep(30 * time.Minute)
			var wg sync.WaitGroup
			for i := range 10 {
				wg.Go(func() { _, _, _ = p.get(t.Context(), testClaims(fmt.Sprint("cold", i))) })
			}
			synctest.Wait() // five minted, five wait
			p.wantMints(6)
			p.want("doc", resultRenewing)
			p.wantMints(6)
			wg.Wait()
			p.wantMints(11)
			time.Sleep(2 * time.Second)
			p.want("doc", resultRenewing)
			p.wantMints(12)
			p.want("doc", resultHit)
		})
	})
	t.Run("a valid token is not refused for the rate", func(t *testing.T) {
		withPool(t, settings, func(t *testing.T, p *poolTest) {
			p.want("doc", resultMinted)
			time.Sleep(50 * time.Minute)
			for i := range 100 {
				go func() { _, _, _ = p.get(t.Context(), testClaims(fmt.Sprint("cold", i))) }()
			}
			synctest.Wait()
			p.want("doc", resultStale)
			time.Sleep(5 * time.Second)
		})
	})
	t.Run("off", func(t *testing.T) {
		withPool(t, func(s *poolSettings) { s.rate, s.burst, _ = (&MintRate{Off: true}).limits() }, func(t *testing.T, p *poolTest) {
			start := time.Now()
			for i := range 5000 {
				p.want(fmt.Sprint("doc", i), resultMinted)
			}
			if waited := time.Since(start); waited > 0 {
				t.Errorf("waited for %s", waited)
			}
		})
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
		p.api.Set(nil)
		time.Sleep(maxDelay)
		p.want("doc", resultMinted)
	})
}

// A panic in a probe must not keep the probe's place for good.
func TestPanicsInProbesAreNoDeadStop(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(dwstest.Failing(500))
		for i := range 10 {
			p.wantFailure(fmt.Sprint("down", i), reasonUnavailable)
		}
		if !p.minter.Failing(clock.Now()) {
			t.Fatal("no back-off")
		}
		p.api.Set(func(dwstest.Request) (*http.Response, error) { panic("boom") })
		for i := range 10 {
			time.Sleep(2 * maxDelay)
			p.wantFailure(fmt.Sprint("panics", i), reasonUnavailable)
		}
		p.api.Set(nil)
		time.Sleep(2 * maxDelay)
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

func TestReloadKeepsTokensAndMintsUnderWay(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		kept := p.want("kept", resultMinted)
		p.api.Delay = 2 * time.Second
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, f := p.get(t.Context(), testClaims("under way")); f != nil {
				t.Error(f)
			}
		})
		synctest.Wait()
		p.wantMints(2)

		newAPI := new(dwstest.API)
		next := newMember(newAPI, nil, zap.NewNop(), "pdf_live_test")
		if same, err := joinPool(testSettings(t), testEndpoint, next, clock.Now); err != nil || same != p.pool {
			t.Fatalf("the new config got another pool (%v)", err)
		}
		if err := p.leave(p.member); err != nil {
			t.Fatal(err)
		}
		p.member = next
		wg.Wait()
		if tok := p.want("kept", resultHit); tok != kept {
			t.Error("the reload lost a token")
		}
		p.want("under way", resultHit)
		p.wantMints(2)
		p.want("new", resultMinted)
		p.wantMints(2)
		if newAPI.Count() != 1 {
			t.Error("the old config's transport is still in use")
		}
	})
}

func TestRefusedReloadChangesNothing(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("kept", resultMinted)
		refused := new(dwstest.API)
		next := newMember(refused, nil, zap.NewNop(), "pdf_live_other")
		if _, err := joinPool(testSettings(t), testEndpoint, next, clock.Now); err != nil {
			t.Fatal(err)
		}
		p.want("meanwhile", resultMinted)
		if err := p.leave(next); err != nil {
			t.Fatal(err)
		}
		p.want("kept", resultHit)
		p.want("after", resultMinted)
		p.wantMints(3)
		if refused.Count() != 0 {
			t.Error("a config that was refused has been asked")
		}
	})
}

func TestRequestsOutliveThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &dwstest.API{Delay: time.Second}
		member := newMember(api, nil, zap.NewNop(), "pdf_live_test")
		p, err := joinPool(testSettings(t), testEndpoint, member, clock.Now)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, f := p.get(t.Context(), testClaims("under way")); f != nil {
				t.Errorf("a mint under way was lost: %v", f)
			}
		})
		synctest.Wait()
		if err := p.leave(member); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if _, _, f := p.get(t.Context(), testClaims("late")); f != nil {
			t.Errorf("a request of the old config that came late: %v", f)
		}
		if _, exists := pools.References(testSettings(t)); exists {
			t.Error("the pool is still there")
		}
	})
}

// withRotatedKey tests a pool that has a token for "doc", minted with a key that
// has been rotated since: another one has proven itself.
func withRotatedKey(t *testing.T, test func(t *testing.T, p *poolTest, old *token)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(dwstest.Key)
	withPool(t, func(s *poolSettings) { s.apiKey = "{file." + file + "}" }, func(t *testing.T, p *poolTest) {
		old := p.want("doc", resultMinted)
		write("pdf_live_next")
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Key != "Bearer pdf_live_next" {
				return dwstest.Failing(401)(r)
			}
			return dwstest.Grant(dwstest.Token(p.api.Count(), r.Exp))
		})
		p.want("other", resultMinted)
		test(t, p, old)
	})
}

// The new key's own token has expired, and the API hangs: the first request
// finds that out, and no other waits for the former key's token.
func TestFormerTokenBehindAnExpiredOne(t *testing.T) {
	withRotatedKey(t, func(t *testing.T, p *poolTest, old *token) {
		p.api.Set(func(dwstest.Request) (*http.Response, error) {
			return dwstest.Grant(dwstest.Token(p.api.Count(), time.Now().Unix()+90))
		})
		p.want("doc", resultMinted)
		time.Sleep(95 * time.Second) // it has not been swept
		p.api.Set(dwstest.Hanging)
		for i := range 5 {
			start := time.Now()
			if p.want("doc", resultStale) != old {
				t.Fatal("another token")
			}
			if waited := time.Since(start); waited != 0 && i > 0 {
				t.Errorf("request %d waited %s", i, waited)
			}
			time.Sleep(2 * time.Second)
		}
		time.Sleep(defaultTimeout) // renewals end
	})
}

// The key was rotated and has proven itself, and then the API fails: whoever
// has a valid token of the former key is served with it, and does not wait.
func TestFormerKeysTokensOutliveAnOutage(t *testing.T) {
	withRotatedKey(t, func(t *testing.T, p *poolTest, old *token) {
		p.api.Set(dwstest.Hanging)
		for i := range 5 {
			start := time.Now()
			if got := p.want("doc", resultStale); got != old {
				t.Error("another token")
			}
			if took := time.Since(start); i > 0 && took > 0 { // the first one finds out
				t.Errorf("request %d took %s", i, took)
			}
			time.Sleep(2 * time.Second)
		}
		p.api.Set(nil)
		time.Sleep(mint.BadNewsAge + 2*maxDelay)
		if got := p.want("doc", resultMinted); got == old {
			t.Error("the former key's token, although another could be minted")
		}
		p.api.Set(dwstest.Hanging)
		time.Sleep(2 * time.Hour)
		p.wantFailure("doc", reasonTimeout) // and never past its exp
	})
	withRotatedKey(t, func(t *testing.T, p *poolTest, old *token) {
		if got := p.want("doc", resultMinted); got == old {
			t.Error("the former key's token, with the API well")
		}
	})
}

// Rotated again before every document had a token of the key in between.
func TestTokensOutliveSeveralRotations(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	rotate := func(p *poolTest, key string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
		if p == nil {
			return
		}
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Key != "Bearer "+key {
				return dwstest.Failing(401)(r)
			}
			return dwstest.Grant(dwstest.Token(p.api.Count(), r.Exp))
		})
		p.want("of "+key, resultMinted)
	}
	rotate(nil, dwstest.Key)
	withPool(t, func(s *poolSettings) { s.apiKey = "{file." + file + "}" }, func(t *testing.T, p *poolTest) {
		old := p.want("doc", resultMinted)
		for i := range 3 {
			rotate(p, fmt.Sprint("pdf_live_", i))
			answer := p.api.Answer
			p.api.Set(dwstest.Failing(503))
			if got := p.want("doc", resultStale); got != old {
				t.Errorf("after %d rotations: another token", i+1)
			}
			p.api.Set(answer)
			time.Sleep(2 * maxDelay)
		}
		rotate(p, dwstest.Key) // and back to the first
		if got := p.want("doc", resultHit); got != old {
			t.Error("the first key's token is not used with the first key")
		}
	})
}

// A mint that began with an old key must not take the place of one that has
// proven a newer key meanwhile.
func TestLateMintDoesNotPromoteAnOldKey(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Delay = 2 * time.Second
		var wg sync.WaitGroup
		wg.Go(func() { p.asked("slow", resultMinted) })
		synctest.Wait()
		next := mint.NewKey("pdf_live_next")
		p.member.key.Store(next)
		p.api.SetDelay(0)
		p.want("fast", resultMinted)
		wg.Wait()
		if *p.keys.current.Load() != next.ID {
			t.Error("the old key's tokens are looked up again")
		}
		p.want("fast", resultHit)
	})
}

// How often a refused key is compared with its file is bounded: strangers cause it.
func TestKeyChecksAreBounded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(dwstest.Key)
	withPool(t, func(s *poolSettings) { s.apiKey = "{file." + file + "}" }, func(t *testing.T, p *poolTest) {
		refused := p.members.key()
		for range keyCheckRate {
			if p.members.Refresh(refused) {
				t.Fatal("another key")
			}
		}
		write("pdf_live_next")
		if p.members.Refresh(refused) {
			t.Error("the file is read more often than it should be")
		}
		time.Sleep(time.Second / keyCheckRate)
		if !p.members.Refresh(refused) {
			t.Error("the new key is not found")
		}
	})
}

// Whoever comes with a new key does not get what an old one mints meanwhile.
func TestNewKeyDoesNotJoinAnOldOnesMint(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Delay = 2 * time.Second
		var wg sync.WaitGroup
		wg.Go(func() { p.asked("doc", resultMinted) })
		synctest.Wait()
		next := mint.NewKey("pdf_live_next")
		p.member.key.Store(next)
		p.api.SetDelay(0)
		p.want("fast", resultMinted)
		tok, _, f := p.get(t.Context(), testClaims("doc"))
		if f != nil || tok.key()[:len(mint.KeyID{})] != string(next.ID[:]) {
			t.Errorf("%v, another key's token", f)
		}
		wg.Wait()
	})
}
