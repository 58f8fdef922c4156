package viewersession

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// from is the context of a request from this address.
func from(ctx context.Context, address string) context.Context {
	return context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{caddyhttp.ClientIPVarKey: address})
}

// overload asks for new documents at a steady rate, and returns how many were
// minted; everything but a token and a 503 is an error.
func (p *poolTest) overload(perSecond float64, during time.Duration) (minted int) {
	p.t.Helper()
	var served atomic.Int32
	var wg sync.WaitGroup
	start := time.Now()
	for i := 0; time.Since(start) < during; i++ {
		wg.Go(func() {
			asked := time.Now()
			_, _, f := p.get(p.t.Context(), testClaims(fmt.Sprint("made-up-", start.UnixNano(), "-", i)))
			switch {
			case f == nil:
				served.Add(1)
			case f.reason != reasonRateLimited || f.reason.status() != 503:
				p.t.Errorf("%s: %v", f.reason, f)
			case clock.Now().Until(f.retryAt) < time.Second:
				p.t.Errorf("retry after %s", clock.Now().Until(f.retryAt))
			}
			if took := time.Since(asked); took > p.settings.timeout {
				p.t.Errorf("took %s", took)
			}
		})
		time.Sleep(time.Duration(float64(time.Second) / perSecond))
	}
	wg.Wait()
	return int(served.Load())
}

// Whatever is asked of it, the gateway goes on minting at mint_rate.
func TestMintsGoOnUnderOverload(t *testing.T) {
	for _, test := range []struct {
		rate    float64
		burst   int
		timeout time.Duration
		api     time.Duration // how long it takes
	}{
		{20, 20, time.Second, 150 * time.Millisecond},
		{100, 1000, 5 * time.Second, 150 * time.Millisecond},
		{100, 1, 5 * time.Second, 10 * time.Millisecond},
		{1, 1, 5 * time.Second, 150 * time.Millisecond},
		{20, 20, time.Second, 600 * time.Millisecond}, // more than half of timeout
		{20, 20, time.Second, 900 * time.Millisecond},
	} {
		for _, times := range []float64{1.3, 5, 50} {
			t.Run(fmt.Sprintf("%g %d, %s, API %s, %g times", test.rate, test.burst, test.timeout, test.api, times), func(t *testing.T) {
				withPool(t, func(s *poolSettings) { s.rate, s.burst, s.timeout = test.rate, test.burst, test.timeout }, func(t *testing.T, p *poolTest) {
					p.api.Delay = test.api
					p.useBurst(t.Context()) // which is not what is measured
					during := min(20*time.Second, time.Duration(20_000/(test.rate*times)*float64(time.Second))+5*time.Second)
					minted := p.overload(test.rate*times, during)
					if want := test.rate * during.Seconds(); float64(minted) < 0.95*want || float64(minted) > want+test.rate*test.timeout.Seconds()+1 {
						t.Errorf("%d tokens in %s, want %.0f", minted, during, want)
					}
					if _, cause := p.minter.HeldBack(p.now()); cause != nil {
						t.Errorf("held back: %v", cause)
					}
				})
			})
		}
	}
}

// An API that needs more than half of timeout is found out, and then given it.
func TestOverloadOfASlowAPI(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst, s.timeout = 20, 20, time.Second }, func(t *testing.T, p *poolTest) {
		p.api.Delay = 700 * time.Millisecond
		var wg sync.WaitGroup
		var minted, timedOut atomic.Int32
		for i := range 2000 { // 100 a second
			wg.Go(func() {
				_, _, f := p.get(t.Context(), testClaims(fmt.Sprint("doc", i)))
				switch {
				case f == nil:
					minted.Add(1)
				case f.reason == reasonTimeout:
					timedOut.Add(1)
				case f.reason != reasonRateLimited:
					t.Errorf("%s: %v", f.reason, f)
				}
			})
			time.Sleep(10 * time.Millisecond)
		}
		wg.Wait()
		if minted.Load() < 380 || timedOut.Load() > 20 {
			t.Errorf("%d minted, %d timed out", minted.Load(), timedOut.Load())
		}
		if _, cause := p.minter.HeldBack(p.now()); cause != nil {
			t.Errorf("held back: %v", cause)
		}
	})
}

// A mint that had to queue has less time than the API is entitled to. If that is
// not enough, it says nothing of the API, and holds nobody back.
func TestTimeInTheQueueIsNotTheAPIs(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst, s.timeout = 2, 3, 4*time.Second }, func(t *testing.T, p *poolTest) {
		p.useBurst(t.Context())
		p.api.Delay = 3600 * time.Millisecond
		var wg sync.WaitGroup
		for i := range 3 { // which have their turns after 0.5, 1 and 1.5 seconds
			wg.Go(func() {
				if _, _, f := p.get(t.Context(), testClaims(fmt.Sprint("doc", i))); f == nil || f.reason != reasonTimeout {
					t.Errorf("got %v, want a time-out", f)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if _, cause := p.minter.HeldBack(p.now()); cause != nil {
			t.Errorf("held back: %v", cause)
		}
		p.api.Delay = 0
		p.want("another", resultMinted)
	})
}

// One client with a thousand made-up ids does not make another one wait.
func TestClientsTakeTurns(t *testing.T) {
	for name, others := range map[string][2]string{
		"IPv4":                 {"192.0.2.1", "192.0.2.2"},
		"IPv6":                 {"2001:db8:0:1::1", "2001:db8:0:2::1"},
		"a user, one address":  {"192.0.2.1", "192.0.2.1"},
		"no address, one user": {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			withPool(t, func(s *poolSettings) { s.rate, s.burst, s.timeout = 10, 1, 5*time.Second }, func(t *testing.T, p *poolTest) {
				ctx, cancel := context.WithCancel(t.Context())
				for i := range 1000 {
					go func() { _, _, _ = p.get(from(ctx, others[0]), testClaims(fmt.Sprint("made-up", i))) }()
				}
				synctest.Wait()
				honest := testClaims("doc")
				if others[0] == others[1] {
					honest.UserID = "ann"
				}
				start := time.Now()
				if _, result, f := p.get(from(t.Context(), others[1]), honest); f != nil || result != resultMinted {
					t.Fatalf("got %s, %v", result, f)
				}
				if turns := time.Since(start) / (100 * time.Millisecond); turns > 2 {
					t.Errorf("waited for %d turns", turns)
				}
				cancel()
			})
		})
	}
}

// All addresses that one customer gets are one client.
func TestClientOfARequest(t *testing.T) {
	client := func(address, user string) string { return clientOf(from(t.Context(), address), user) }
	same := [][2]string{
		{client("2001:db8:1:2::1", ""), client("2001:db8:1:2:ffff::9", "")},
		{client("192.0.2.1", ""), client("::ffff:192.0.2.1", "")},
		{client("fe80::1%eth0", ""), client("fe80::1%eth1", "")},
		{clientOf(t.Context(), ""), client("", "")},
	}
	for _, pair := range same {
		if pair[0] != pair[1] || pair[0] == "" {
			t.Errorf("%q and %q", pair[0], pair[1])
		}
	}
	other := [][2]string{
		{client("2001:db8:1:2::1", ""), client("2001:db8:1:3::1", "")},
		{client("192.0.2.1", ""), client("192.0.2.2", "")},
		{client("192.0.2.1", "ann"), client("192.0.2.1", "bob")},
	}
	for _, pair := range other {
		if pair[0] == pair[1] {
			t.Errorf("%q twice", pair[0])
		}
	}
}

// Refusals leave no debt: after a flood of any length the next request has the
// next turn.
func TestFloodLeavesNoDebt(t *testing.T) {
	for _, seconds := range []int{1, 6, 60} {
		withPool(t, func(s *poolSettings) { s.rate, s.burst = 1, 1 }, func(t *testing.T, p *poolTest) {
			ctx, cancel := context.WithCancel(t.Context())
			for i := range 100 * seconds {
				go func() { _, _, _ = p.get(ctx, testClaims(fmt.Sprint("made-up", i))) }()
				time.Sleep(10 * time.Millisecond)
			}
			cancel()
			synctest.Wait()
			start := time.Now()
			p.want("doc", resultMinted)
			if took := time.Since(start); took > time.Second {
				t.Errorf("after %d s of flood an honest request waited for %s", seconds, took)
			}
		})
	}
}

// Whoever has given up is not minted for.
func TestThoseWhoLeftAreNotMintedFor(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst = 100, 1 }, func(t *testing.T, p *poolTest) {
		p.want("first", resultMinted)
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 200 {
			go func() { _, _, _ = p.get(ctx, testClaims(fmt.Sprint("doc", i))) }()
		}
		// Two wait for one of them, and one stays.
		stays := make(chan *failure)
		go func() {
			_, _, f := p.get(t.Context(), testClaims("doc7"))
			stays <- f
		}()
		synctest.Wait()
		p.wantMints(1)
		cancel()
		if f := <-stays; f != nil {
			t.Error(f)
		}
		time.Sleep(p.settings.timeout)
		p.wantMints(2)
		p.flights.mu.Lock()
		defer p.flights.mu.Unlock()
		if len(p.flights.byName) != 0 {
			t.Errorf("%d flights are left", len(p.flights.byName))
		}
	})
}

// A mint that has been sent is finished and kept.
func TestSentMintIsKept(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Delay = time.Second
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _, _, _ = p.get(ctx, testClaims("doc")) }()
		synctest.Wait()
		cancel()
		time.Sleep(2 * time.Second)
		p.want("doc", resultHit)
	})
}

// A document that several wait for is served at the first of their turns.
func TestSharedDocumentIsServedAtTheFirstTurn(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst = 10, 1 }, func(t *testing.T, p *poolTest) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for i := range 20 {
			go func() { _, _, _ = p.get(from(ctx, "192.0.2.1"), testClaims(fmt.Sprint("made-up", i))) }()
			synctest.Wait()
		}
		// The last in the long line is wanted by another client, too.
		start := time.Now()
		if _, _, f := p.get(from(t.Context(), "192.0.2.2"), testClaims("made-up19")); f != nil {
			t.Fatal(f)
		}
		if took := time.Since(start); took > 200*time.Millisecond {
			t.Errorf("took %s", took)
		}
	})
}

// Many who wait for one document take one turn, and no more room than that.
func TestPopularDocumentTakesOnePlace(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst, s.timeout = 10, 1, 5*time.Second }, func(t *testing.T, p *poolTest) {
		p.want("first", resultMinted)
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				if _, _, f := p.get(from(t.Context(), fmt.Sprintf("192.0.%d.%d", i/250, i%250)), testClaims("popular")); f != nil {
					t.Error(f)
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		if _, _, f := p.get(from(t.Context(), "198.51.100.1"), testClaims("another")); f != nil || time.Since(start) > 200*time.Millisecond {
			t.Errorf("after %s: %v", time.Since(start), f)
		}
		wg.Wait()
		p.wantMints(3)
	})
}

// A route that promises more than another must not get what does for that one.
func TestJoinedFlightKeepsMinRemaining(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("doc", resultMinted)
		time.Sleep(50 * time.Minute) // ten minutes are left
		content, demanding := testClaims("doc"), testClaims("doc")
		content.MinRemaining, demanding.MinRemaining = time.Minute, 30*time.Minute
		old := p.cache.get(p.keys.cacheKey(string(content.AppendKey(nil))))
		release := make(chan struct{})
		name := old.key()[len(mint.KeyID{}):]
		p.flights.start(name, "another", p.minter.NewWaiters, func(f *flight) {
			<-release
			f.token = old // good enough for the one who looked
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			tok, _, f := p.get(t.Context(), demanding)
			if f != nil || tok == old {
				t.Errorf("%v, a token that is good for ten minutes: %v", f, tok == old)
			}
		})
		synctest.Wait()
		close(release)
		wg.Wait()
		p.wantMints(2)
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
